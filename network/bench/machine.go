package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine describes where a run was made, for people.
func machine() string {
	var u unix.Utsname
	system := "unknown kernel"
	if unix.Uname(&u) == nil {
		system = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	memory := ""
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		memory = fmt.Sprintf(", %d GiB", (uint64(info.Totalram)*uint64(info.Unit)+1<<29)>>30)
	}
	return fmt.Sprintf("%d × %s%s, %s, %s (%s)", runtime.NumCPU(), processor(), memory, system, runtime.Version(), runtime.GOARCH)
}

// processor is the processor's name, as the kernel has it.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "processor"
	}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "processor"
}

// load is how many processes ran or waited for a processor, over a minute.
func load() float64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	const one = 1 << 16 // SI_LOAD_SHIFT
	return float64(info.Loads[0]) / one
}

// toolVersion is what ip says of its version, "" where there is none.
func toolVersion() string {
	out, err := exec.Command("ip", "-V").Output()
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "ip utility, ")
}
