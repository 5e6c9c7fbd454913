package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is a process's resident memory in bytes.
type Memory struct {
	// Now is the memory of the moment, Most the most that it ever was, and Heap
	// the part of Now that is no file's (the program's own code is one).
	Now, Most, Heap uint64
}

func readMemory(pid int) (m Memory, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, fmt.Errorf("read the daemon's memory: %w", err)
	}
	fields := map[string]*uint64{"VmRSS:": &m.Now, "VmHWM:": &m.Most, "RssAnon:": &m.Heap}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		words := bytes.Fields(s.Bytes())
		if len(words) < 2 {
			continue
		}
		if to := fields[string(words[0])]; to != nil {
			kib, err := strconv.ParseUint(string(words[1]), 10, 64)
			if err != nil {
				return m, fmt.Errorf("read the daemon's memory: %w", err)
			}
			*to = kib << 10
		}
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
		return 0, fmt.Errorf("read the daemon's processor time: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
