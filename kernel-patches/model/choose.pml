/* SPDX-License-Identifier: GPL-2.0-only */
/* How a lookup chooses a member of a reuseport group while members join, leave
 * and change their mode: ALGORITHM.md as a model.  ./check runs it.
 *
 * One writer at a time (reuseport_lock: several are one that chooses anew) makes
 * changes without end; one lookup begins at any instant. Each store and each
 * load that the other side can tell is a step of its own. Memory is sequentially
 * consistent; README.md says why that is enough.
 *
 * A change takes effect at some instant between its begin and its end. "Can be
 * chosen" means ON, or STANDBY while nobody is ON.
 *   P1  None is chosen only if at some instant of the lookup none could be.
 *   P2  A member is chosen only if it could be at some instant of the lookup.
 *   P3  By then getsockopt() has not reported it drained, with nothing queued.
 *   P4  Whose first try no store overlaps needs no second, even if the writer
 *       is stopped in the middle of a change.
 *   P5  At every instant, who can be chosen before and after the change under
 *       way is in the part of socks[] that lookups look at.
 *   P6  What a lookup reads from socks[] is a member, or has been one since the
 *       lookup began.
 *
 * The state space is finite, so that any number of changes is looked at:
 * members differ by their numbers alone, and are numbered anew after each change
 * by their place in socks[]; and one victim is judged, any one of them.
 */
#ifndef NM
#define NM 4
#endif
#if defined(FAULT_NO_ANY)
#define FAULTY true
#else
#define FAULTY false
#endif

#define ON 0
#define STANDBY 1
#define OFF 2
#define OUT 3				/* not in the group */
#define NIL 7

/* The group: struct sock_reuseport */
byte socks[NM] = NIL;
byte num_on, num_ready, num_socks;
byte any = NIL;
bool mixed;
/* on_seq: has it kept its value since the lookup read it? */
bool seq_same;
/* The members: sk->sk_reuseport_section */
byte section[NM] = ON;

/* What the user knows: the modes, and the change under way from mode[who] to to */
byte mode[NM] = OUT;
byte who = NIL, to;
/* The writer's */
byte step, i, displaced;
bool was_none;
/* The lookup's */
byte sk = NIL, p = NIL;			/* p: which slot it will read */
bool standby;
bool frozen;				/* it has an array that was replaced */

/* Ghosts */
mtype = { none, chosen, reported, rest };
mtype judge;				/* P1, P2, P3, P4 to P6 */
bool running, over;
byte victim = NIL;			/* of P2 and P3; NIL otherwise */
bool drained;				/* getsockopt() said so */
bool held, held_on;			/* its cookie, the group's: for the lookup */
bool chose;				/* it did, and has not queued yet */
bool quiet;				/* no store in the lookup */
hidden byte x, y, z, seen;
hidden byte name[8], tmp[NM];
hidden byte stored;

#define MODE_AFTER(k) (k == who -> to : mode[k])
#if NM == 3
#define SOME(M, v) (M(0) == v || M(1) == v || M(2) == v)
#elif NM == 4
#define SOME(M, v) (M(0) == v || M(1) == v || M(2) == v || M(3) == v)
#elif NM == 5
#define SOME(M, v) (M(0) == v || M(1) == v || M(2) == v || M(3) == v || M(4) == v)
#endif
#define MODE(k) mode[k]
#define CAN(M, k) (M(k) == ON || (M(k) == STANDBY && !SOME(M, ON)))
#define CAN_NONE(M) (!SOME(M, ON) && !SOME(M, STANDBY))

/* Nothing that follows counts: one state for it all */
inline forget() {
	over = 1;
	x = 0;
	do
	:: x < NM -> socks[x] = 0; section[x] = 0; mode[x] = 0; x++
	:: x == NM -> break
	od;
	num_on = 0; num_ready = 0; num_socks = 0; any = 0; mixed = 0; seq_same = 0;
	who = NIL; to = 0; step = 0; i = 0; displaced = 0; was_none = 0;
	sk = 0; p = 0; standby = 0; frozen = 0;
	running = 0; judge = 0; victim = 0; drained = 0; held = 0; held_on = 0;
	chose = 0; quiet = 0
}

/* When the lookup or a change begins: is what is judged right from now on? */
inline look() {
	if
	:: judge == none && (CAN_NONE(MODE) || CAN_NONE(MODE_AFTER)) -> forget()
	:: judge == chosen && (CAN(MODE, victim) || CAN(MODE_AFTER, victim)) -> forget()
	:: else
	fi
}

inline reachable() {
	x = 0;
	do
	:: x < NM && CAN(MODE, x) && CAN(MODE_AFTER, x) ->
		y = 0;
		do
		:: y < (num_on -> num_on : num_ready) && socks[y] != x -> y++
		:: else -> break
		od;
		assert(y < (num_on -> num_on : num_ready));	/* P5 */
		x++
	:: x < NM && !(CAN(MODE, x) && CAN(MODE_AFTER, x)) -> x++
	:: x == NM -> break
	od
}

/* Cookies of RCU: over at once unless the lookup is running, the worst case */
inline restart_own() {
	if :: judge == reported && who == victim -> held = running :: else fi
}

/* array[], taken apart and written again */
#define PERMUTE(array, assignment) \
	x = 0; \
	do \
	:: x < NM -> tmp[x] = array[x]; x++ \
	:: x == NM -> break \
	od; \
	x = 0; \
	do \
	:: x < NM -> assignment; x++ \
	:: x == NM -> break \
	od

/* By place; then, of those outside, the victim and what the lookup holds */
inline give(k) {
	if :: k != NIL && name[k] == NIL -> name[k] = y; y++ :: else fi
}
inline number() {
	x = 0;
	do
	:: x < 8 -> name[x] = NIL; x++
	:: x == 8 -> break
	od;
	y = 0;
	do
	:: y < num_socks -> x = socks[y]; give(x)
	:: y == num_socks -> break
	od;
	give(victim); give(sk);
	x = num_socks;
	do
	:: x < NM -> if :: x == p -> z = socks[x]; give(z) :: else -> socks[x] = NIL fi; x++
	:: x >= NM -> break
	od;
	seen = y;
	x = 0;
	do
	:: x < NM -> give(x); x++
	:: x == NM -> break
	od;
	PERMUTE(socks, socks[x] = (tmp[x] == NIL -> NIL : name[tmp[x]]));
	PERMUTE(mode, mode[name[x]] = tmp[x]);
	PERMUTE(section, section[name[x]] = tmp[x]);
	if :: victim != NIL -> victim = name[victim] :: else fi;
	if :: sk != NIL -> sk = name[sk] :: else fi;
	if :: any != NIL -> any = name[any] :: else fi;
	/* The rest has left, and whatever its section says, nobody can see it */
	x = seen;
	do
	:: x < NM -> section[x] = ON; x++
	:: x >= NM -> break
	od;
	x = 0; y = 0; z = 0
}
inline begin() {
	if
	:: judge == reported && (who == victim && to != OUT || mode[victim] == STANDBY && !SOME(MODE_AFTER, ON)) -> drained = 0
	:: else
	fi;
#ifdef FAULT_COOKIE_FIRST
	if :: to == STANDBY || to == OFF -> restart_own() :: else fi;
#endif
	if :: running -> look() :: else fi
}

inline end() {
#if defined(FAULT_COOKIE_FROM_ON_ONLY)
	if :: (to == STANDBY || to == OFF) && mode[who] == ON -> restart_own() :: else fi;
#elif defined(FAULT_NO_COOKIE_AT_JOIN)
	if :: (to == STANDBY || to == OFF) && mode[who] != OUT -> restart_own() :: else fi;
#elif !defined(FAULT_COOKIE_FIRST)
	if :: to == STANDBY || to == OFF -> restart_own() :: else fi;
#endif
#ifndef FAULT_NO_GROUP_COOKIE
	if :: to == ON && was_none -> held_on = running :: else fi;
#endif
	mode[who] = to;
	who = NIL; to = 0; step = 0; was_none = 0;
	/* getsockopt() asks at once */
	if
	:: judge != reported -> held_on = 0
	:: else ->
		if
		:: mode[victim] == OFF -> drained = !held; held_on = 0
		:: mode[victim] == STANDBY -> held_on = held_on && SOME(MODE, ON);
			drained = SOME(MODE, ON) && !held && !held_on
		:: mode[victim] == ON -> drained = 0; held = 0; held_on = 0
		:: mode[victim] == OUT -> held = 0; held_on = 0
		fi
	fi;
	number()
}

/* The steps of a change, in this order */
#define S_MIXED 0
#define S_SECTION_IN 1
#define S_JOIN 2
#define S_UP_READY 3			/* and 4, 5 */
#ifndef FAULT_SEQ_EARLY
#define S_UP_ON 6			/* and 7, 8 */
#define S_SEQ 9
#else
#define S_SEQ 6
#define S_UP_ON 7
#endif
#define S_DOWN_ON 10			/* and 11, 12 */
#define S_DOWN_READY 13			/* and 14, 15 */
#define S_ANY 16
#define S_SECTION_OUT 17
#define S_LEAVE 18
#define S_END 19

/* sk->sk_reuseport_index: the last place for whom is not there yet */
inline find_who() { i = 0; do :: i < num_socks - 1 && socks[i] != who -> i++ :: else -> break od }

inline bump_seq() {
	if :: !frozen -> seq_same = 0 :: else fi
}

/* Over the boundary B, which is num_on or num_ready. The first store puts who
 * stays where it will be, so that it is never missing. Two of the three stores
 * are left out for whom the boundary is next to.
 */
inline up(first, B) {
	if
	:: step == first ->
		find_who();
		displaced = socks[B];
#if defined(FAULT_UP_COUNT_FIRST)
		B++; stored = 1
	:: step == first + 1 -> if :: i != B - 1 -> socks[B - 1] = who; stored = 1 :: else fi
	:: step == first + 2 -> if :: i != B - 1 -> socks[i] = displaced; stored = 1 :: else fi; i = 0; displaced = 0
#elif defined(FAULT_UP_ORDER)
		if :: i != B -> socks[i] = displaced; stored = 1 :: else fi
	:: step == first + 1 -> if :: i != B -> socks[B] = who; stored = 1 :: else fi
	:: step == first + 2 -> B++; i = 0; displaced = 0; stored = 1
#else
		if :: i != B -> socks[B] = who; stored = 1 :: else fi
	:: step == first + 1 -> if :: i != B -> socks[i] = displaced; stored = 1 :: else fi
	:: step == first + 2 -> B++; i = 0; displaced = 0; stored = 1
#endif
	fi
}
inline down(first, B) {
	if
	:: step == first ->
		find_who();
#if defined(FAULT_DOWN_ORDER)
		displaced = socks[B - 1];
		if :: i != B - 1 -> socks[B - 1] = who; stored = 1 :: else fi
	:: step == first + 1 -> if :: i != B - 1 -> socks[i] = displaced; stored = 1 :: else fi
	:: step == first + 2 -> B--; i = 0; displaced = 0; stored = 1
#elif defined(FAULT_DOWN_COUNT_FIRST)
		B--; stored = 1
	:: step == first + 1 -> if :: i != B -> socks[i] = socks[B]; stored = 1 :: else fi
	:: step == first + 2 -> if :: i != B -> socks[B] = who; stored = 1 :: else fi; i = 0
#else
		if :: i != B - 1 -> socks[i] = socks[B - 1]; stored = 1 :: else fi
	:: step == first + 1 -> if :: i != B - 1 -> socks[B - 1] = who; stored = 1 :: else fi
	:: step == first + 2 -> B--; i = 0; stored = 1
#endif
	fi
}

/* A larger array takes the place of this one. The lookup goes on with this one,
 * in which nothing changes any more: what it has yet to read there, it may as
 * well read at once, and changes wait for that.
 */
inline grow() {
	frozen = 1;
	quiet = 0;
#ifndef FAULT_GROW_KEEPS_SEQ
	seq_same = 0
#endif
}

#define FROM mode[who]
inline advance() {
	d_step {
		stored = 0;
		do
		:: stored && !chose || who == NIL -> break
		:: else ->
			if
			:: step == S_MIXED ->
				was_none = (num_on == 0);
				if :: !mixed && (to == STANDBY || to == OFF) -> mixed = 1; stored = 1 :: else fi
			:: step == S_SECTION_IN ->
#if defined(FAULT_SECTION_LATE)
				skip
#elif defined(FAULT_SECTION_EARLY)
				if :: to != OUT && section[who] != to -> section[who] = to; stored = 1 :: else fi
#else
				if :: to < FROM && section[who] != to -> section[who] = to; stored = 1 :: else fi
#endif
			:: step == S_JOIN ->
#ifdef FAULT_JOIN_LATE
				if :: FROM == OUT -> num_socks++ :: else fi
#else
				if :: FROM == OUT -> socks[num_socks] = who; num_socks++; stored = 1 :: else fi
#endif
			:: step >= S_UP_READY && step < S_UP_READY + 3 ->
				if :: FROM >= OFF && to < OFF -> up(S_UP_READY, num_ready) :: else fi
			:: step >= S_UP_ON && step < S_UP_ON + 3 ->
				if :: to == ON -> up(S_UP_ON, num_on) :: else fi
			:: step == S_SEQ ->
				if :: to == ON && was_none -> bump_seq(); stored = 1 :: else fi
			:: step >= S_DOWN_ON && step < S_DOWN_ON + 3 ->
				if :: FROM == ON -> down(S_DOWN_ON, num_on) :: else fi
			:: step >= S_DOWN_READY && step < S_DOWN_READY + 3 ->
				if :: FROM < OFF && to >= OFF -> down(S_DOWN_READY, num_ready) :: else fi
			:: step == S_ANY ->
#ifdef FAULT_JOIN_LATE
				find_who();
				if :: FROM == OUT && socks[i] != who -> socks[i] = who :: else fi;
				i = 0;
#endif
				x = (num_ready -> socks[0] : NIL);
#ifdef FAULT_ANY_EMPTIED
				if
				:: any != x && any != NIL -> any = NIL; stored = 1; step--
				:: any != x && any == NIL -> any = x; stored = 1
				:: else
				fi
#else
				if :: any != x -> any = x; stored = 1 :: else fi
#endif
			:: step == S_SECTION_OUT ->
				/* to == OUT: REUSEPORT_SECTION_LEFT */
				if :: (to != OUT || mixed) && section[who] != to -> section[who] = to; stored = 1 :: else fi
			:: step == S_LEAVE ->
				if
				:: to == OUT ->
					find_who();
					if :: i != num_socks - 1 -> socks[i] = socks[num_socks - 1]; stored = 1 :: else fi;
					num_socks--; i = 0
				:: else
				fi
			:: step == S_END -> end()
			fi;
			if :: who != NIL -> step++ :: else fi
		od;
		if :: stored && judge == rest -> quiet = 0; reachable() :: else fi
	}
}

active proctype writer() provided (!over)
{
	atomic {
#ifdef JUDGE
		judge = JUDGE;
#else
		if :: judge = none :: judge = chosen :: judge = reported :: judge = rest fi;
#endif
		if :: judge == chosen || judge == reported -> victim = 0 :: else fi;
		run lookup()
	};
	do
	:: atomic { who == NIL && (!frozen || sk != NIL) ->
		if :: who = 0 :: who = 1 :: who = 2 :: NM > 3 -> who = 3 :: NM > 4 -> who = 4 fi;
		if :: to = ON :: to = STANDBY :: to = OFF :: to = OUT fi;
		if
		:: mode[who] == to -> who = NIL; to = 0	/* stores nothing */
		:: else -> begin(); if :: !over -> advance() :: else fi
		fi }
	:: atomic { who != NIL -> advance() }
	:: atomic { who == NIL && running && !frozen -> grow() }
	od
}

/* The choice is made by its last load */
inline yield(member) {
	x = member;
	assert(judge != none || x != NIL);			/* P1 */
	assert(judge != chosen || x != victim);			/* P2 */
	if
	:: judge == reported && x == victim ->
		chose = 1; sk = 0; p = NIL; standby = 0; seq_same = 0;
		goto deliver
	:: else -> forget(); goto done
	fi
}

/* By hash, or by the index that a program gave: any */
inline pick(n) {
	if :: p = 0 :: n > 1 -> p = 1 :: n > 2 -> p = 2 :: n > 3 -> p = 3 :: n > 4 -> p = 4 fi
}

/* It tries once, or takes reuse->any before it ever tried. One that tries more
 * often contains one that began with its last try, and what is right for this
 * one is right for that one.
 */
proctype lookup()
{
#if defined(FAULT_WALK_UP) || defined(FAULT_WALK_DOWN)
	byte n;
#endif
#ifdef FAULT_MIXED_BEFORE_SLOT
	bool saw_mixed;
#endif

	atomic {
		/* Its first load begins it */
		running = 1; quiet = (judge == rest); look();
		if
		:: over -> goto done
#ifndef FAULT_NO_ANY
		:: !over && judge != rest -> goto take_any
#endif
		:: !over && (judge != none || FAULTY)
		fi;
#ifdef FAULT_MIXED_BEFORE_SLOT
		saw_mixed = mixed
	};
	atomic {
#endif
#ifdef FAULT_SLOT_BEFORE_COUNT
		if :: p = 0 :: p = 1 :: p = 2 :: p = NM - 1 fi;
		sk = socks[p]
	};
	atomic {
		if :: p < num_on -> goto have_sk :: else -> forget(); goto done fi;
#endif
		if :: num_on > 0 -> pick(num_on); goto have_p :: else fi
	};
	seq_same = 1;
	atomic { if :: num_on > 0 -> seq_same = 0; pick(num_on); goto have_p :: else fi };
	atomic { if :: num_ready > 0 -> standby = 1; pick(num_ready) :: else -> forget(); goto done fi };
have_p:
	atomic {
		sk = socks[p];
		p = NIL;
		assert(sk != NIL);				/* P6 */
		/* What else is judged does not depend on how this goes on */
		if
		:: victim != NIL && sk != victim || judge == rest && !quiet -> forget(); goto done
		:: else
		fi
	};
#ifdef FAULT_SLOT_BEFORE_COUNT
have_sk:
	assert(sk != NIL);					/* P6 */
	p = NIL;
#endif
#ifdef FAULT_NO_CHECK
	atomic { yield(sk) };
#endif
#ifdef FAULT_MIXED_BEFORE_SLOT
	atomic { if :: !saw_mixed -> yield(sk) :: else fi };
#endif
	if
	:: mixed
	:: atomic { !mixed -> yield(sk) }
	fi;
	atomic {
		if
		:: section[sk] == ON -> yield(sk)
#ifdef FAULT_STANDBY_UNASKED
		:: section[sk] == STANDBY -> yield(sk)
#endif
		:: section[sk] == STANDBY && standby
		:: else -> goto reject
		fi
	};
#ifdef FAULT_NO_SEQ
	atomic { yield(sk) };
#endif
	atomic { if :: seq_same -> yield(sk) :: else fi };
reject:
	atomic {
		assert(!quiet);					/* P4 */
#ifdef FAULT_NO_ANY
		yield(NIL);
#endif
		forget();
		goto done
	};
take_any:
#if defined(FAULT_WALK_UP) || defined(FAULT_WALK_DOWN)
	atomic { n = num_on; if :: n == 0 -> n = num_ready; standby = 1 :: else fi; p = 0 };
	do
	:: p < n ->
#ifdef FAULT_WALK_UP
		sk = socks[p];
#else
		sk = socks[n - 1 - p];
#endif
		atomic {
			if
			:: section[sk] == ON || (section[sk] == STANDBY && standby) -> yield(sk)
			:: else -> p++; sk = NIL
			fi
		}
	:: else -> break
	od;
	atomic { yield(NIL) };
#elif defined(FAULT_SLOT_0)
	sk = socks[0];
	atomic { if :: num_ready -> yield(sk) :: else -> yield(NIL) fi };
#endif
	atomic { y = any; yield(y) };
deliver:
	/* Still in the same RCU reader: what was chosen for is queued, where
	 * the counts show it.
	 */
	atomic {
		assert(!drained);				/* P3 */
		forget()
	};
done:
	skip
}
