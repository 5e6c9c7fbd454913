package lab

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ReadMemory fills in fields of a process's file in /proc, such as "VmRSS:" of
// status or "Pss:" of smaps_rollup (proc_pid_status(5), proc_pid_smaps(5)), which
// are in KiB there, in bytes here. A field that the file lacks is left alone.
func ReadMemory(pid int, file string, fields map[string]*uint64) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return fmt.Errorf("read a process's memory: %w", err)
	}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		words := bytes.Fields(s.Bytes())
		if len(words) < 2 || fields[string(words[0])] == nil {
			continue
		}
		kib, err := strconv.ParseUint(string(words[1]), 10, 64)
		if err != nil {
			return fmt.Errorf("read a process's memory: %w", err)
		}
		*fields[string(words[0])] = kib << 10
	}
	return nil
}

// ProcessorTime is that of a process, with that of threads that ended. The clock's
// number is made as CPUCLOCK_SCHED of the whole process
// (include/linux/posix-timers_types.h).
func ProcessorTime(pid int) (time.Duration, error) {
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, fmt.Errorf("read a process's processor time: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
