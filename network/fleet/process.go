package fleet

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is what a process takes, in bytes: what is resident, its share of that
// where pages are divided among the processes that have them (most of all the
// program's own code), and the part that is no file's.
type Memory struct {
	Resident, Share, Own uint64
}

// readMemory reads proc_pid_smaps_rollup(5).
func readMemory(pid int) (m Memory, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return m, fmt.Errorf("read a process's memory: %w", err)
	}
	fields := map[string]*uint64{"Rss:": &m.Resident, "Pss:": &m.Share, "Anonymous:": &m.Own}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		words := bytes.Fields(s.Bytes())
		if len(words) < 2 || fields[string(words[0])] == nil {
			continue
		}
		kib, err := strconv.ParseUint(string(words[1]), 10, 64)
		if err != nil {
			return m, fmt.Errorf("read a process's memory: %w", err)
		}
		*fields[string(words[0])] = kib << 10
	}
	return m, nil
}

// readCPU is the processor time of a process, with that of threads that ended.
// The clock's number is made as CPUCLOCK_SCHED of the whole process
// (include/linux/posix-timers_types.h).
func readCPU(pid int) (time.Duration, error) {
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, fmt.Errorf("read a process's processor time: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
