# SPDX-License-Identifier: GPL-2.0
# The programs of the reuseport_listen_off tests, as a skeleton which loads
# them by bpf(2) alone: the tests link no library.
BPFTOOL ?= bpftool
LSKEL := $(OUTPUT)/reuseport_listen_off.lskel.h
LSKEL_USERS := $(addprefix $(OUTPUT)/reuseport_listen_off_, \
	bpf churn migrate stress)

$(LSKEL_USERS): override CFLAGS += -isystem $(OUTPUT) $(CCINCLUDE)
$(LSKEL_USERS): | $(LSKEL)

$(LSKEL): $(OUTPUT)/reuseport_listen_off.bpf.o
	$(BPFTOOL) gen skeleton -L $< name programs >$@.new
	mv $@.new $@

# Newer trees have this rule for every program.
ifndef BPF_PROG_OBJS
$(OUTPUT)/%.bpf.o: %.bpf.c $(BPFOBJ) | $(MAKE_DIRS)
	$(CLANG) -O2 -g --target=bpf $(CCINCLUDE) $(CLANG_SYS_INCLUDES) \
		-c $< -o $@
endif

EXTRA_CLEAN += $(LSKEL) $(OUTPUT)/reuseport_listen_off.bpf.o
