/* SPDX-License-Identifier: GPL-2.0-only */
/* Whether a lookup that came by a STANDBY socket, and whose group yielded none,
 * finds it: __reuseport_sock_hidden().  ./check runs it.
 *
 * A TCP socket, STANDBY all the time, is a member of a group, leaves it to be
 * closed, listens again there or, without SO_REUSEPORT, outside of groups, and
 * is brought into one from there. Another member comes and goes, ON. Each store
 * and each load that the other side can tell is a step of its own, in a memory
 * that is sequentially consistent; see README.md. Any number of changes.
 *
 * The socket can be found while it is alone, or a member and nobody is ON. A
 * change takes effect at some instant between its begin and its end.
 *   P7  It is found only if it could be at some instant of the lookup.
 *   P8  It is passed over only if it could not be at some instant of the lookup.
 */
mtype = { member, away, single };	/* where the socket is */
mtype = { nobody, it, other };

/* struct sock */
bool cb = 1;				/* sk_reuseport_cb: there is a group */
bool left, alone;			/* flags of sk_reuseport_section */
bool hashed = 1;			/* a lookup that begins comes by it */
/* struct sock_reuseport */
bool num_on;
mtype any = it;
bool seq_same;				/* on_seq is what the lookup read */

/* Ghosts: now, and after the change under way */
mtype at = member, at_after = member;
bool on, on_after;
bool running, could, could_not;

#define CAN(AT, ON) (AT == single || (AT == member && !(ON)))
inline watch() {
	could = could || CAN(at, on) || CAN(at_after, on_after);
	could_not = could_not || !CAN(at, on) || !CAN(at_after, on_after)
}
inline begin(where, is_on) { at_after = where; on_after = is_on; watch() }
inline end() { at = at_after; on = on_after; watch() }

inline set_any() { any = (num_on -> other : (at_after == member -> it : nobody)) }

/* __reuseport_add_sock() */
inline join() {
	atomic {
		begin(member, on);
#ifdef FAULT_ALONE_CLEARED_FIRST
		alone = 0
	};
	atomic {
#endif
		cb = 1
	};
	atomic { left = 0; alone = 0 };
	set_any();
	end();
	hashed = 1
}

active proctype writer()
{
	do
	:: at == member ->			/* reuseport_detach_sock(), __inet_hash() */
#ifdef FAULT_LEFT_ASKED
		atomic { begin(away, on); set_any() };
		left = 1;
		cb = 0;
#else
		atomic { begin(away, on); cb = 0 };
		set_any();
		left = 1;
#endif
		atomic { hashed = 0; end() }
	:: at == away -> join()
	:: at == single -> join()		/* by another one that binds to its address */
	:: at == away && !on ->			/* reuseport_stay_alone(): bind() allows no other */
		atomic {
			begin(single, on);
#ifdef FAULT_LEFT_ASKED
			left = 0
#elif !defined(FAULT_NO_ALONE)
			alone = 1
#endif
		};
		atomic { hashed = 1; end() }
	:: at == single -> atomic { begin(away, on); hashed = 0; end() }
	:: at != single && !on ->
		atomic { begin(at, 1); num_on = 1 };
		seq_same = 0;
		atomic { set_any(); end() }
	:: on ->
		atomic { begin(at, 0); num_on = 0 };
		atomic { set_any(); end() }
	od
}

active proctype lookup()
{
	bool was_alone, exact;

again:
	atomic { hashed && !running -> running = 1; could = 0; could_not = 0; watch() };
	/* The choice by its group; what that yields is for choose.pml */
	if
	:: atomic { cb -> skip }; if :: any != nobody -> goto done :: any == nobody fi
	:: atomic { !cb -> skip }
	fi;

	was_alone = alone;
#if !defined(FAULT_LEFT_ASKED) && !defined(FAULT_GROUP_FIRST)
	if :: was_alone -> goto found :: else fi;
#endif
	if
	:: atomic { cb -> skip }
	:: atomic { !cb ->
#ifdef FAULT_LEFT_ASKED
		skip };
		if :: atomic { left -> goto passed } :: atomic { !left -> goto found } fi
#else
		if :: was_alone -> goto found :: else -> goto passed fi }
#endif
	fi;
	/* reuseport_look() */
	if :: atomic { num_on -> goto passed } :: atomic { !num_on -> skip } fi;
	seq_same = 1;
	if :: atomic { num_on -> goto passed } :: atomic { !num_on -> skip } fi;
	/* reuseport_may_choose() */
	exact = !left && !alone;
#ifdef FAULT_NO_SEQ
	if :: exact -> goto found :: else -> goto passed fi;
#else
	if :: atomic { exact && seq_same -> goto found } :: atomic { !exact || !seq_same -> goto passed } fi;
#endif
found:
	atomic { assert(could); goto done };		/* P7 */
passed:
	atomic { assert(could_not) };			/* P8 */
done:
	atomic { running = 0; was_alone = 0; exact = 0; seq_same = 0; could = 0; could_not = 0 };
	goto again
}
