package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// Legacy iptables keeps its rules in x_tables, of which nftables knows nothing.
// Which tables are in use stands in /proc; the policy of a chain is read as
// "iptables-legacy" does, by socket options.

var (
	legacyNames = subnet.PerFamily[string]{"/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"}
	legacyTools = subnet.PerFamily[string]{"iptables-legacy", "ip6tables-legacy"}
)

// legacyFindings looks at the chain FORWARD of legacy iptables in a namespace.
func legacyFindings(ns *os.File, n Network) []Finding {
	var out []Finding
	for _, f := range families(n) {
		var found *Finding
		err := inNamespace(ns, func() (err error) {
			found, err = legacyFinding(f, n)
			return err
		})
		if err != nil {
			found = &Finding{Rule: fmt.Sprintf("unreadable: %v", err), Mend: legacyTools[f] + " -S FORWARD"}
		}
		if found != nil {
			found.Table, found.Chain = subnet.PerFamily[string]{"legacy ip", "legacy ip6"}[f]+" "+filterTable, forwardChain
			found.Traffic = "from and to pods"
			out = append(out, *found)
		}
	}
	return out
}

// inNamespace calls fn on a thread in the namespace. A thread that entered
// another stays locked, and so ends with its goroutine.
func inNamespace(ns *os.File, fn func() error) error {
	if ns == nil {
		return fn()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

func legacyFinding(f subnet.Family, n Network) (*Finding, error) {
	used, err := legacyTables(f)
	if err != nil || !slices.Contains(used, filterTable) {
		return nil, err
	}
	drop, rules, err := legacyForward(f)
	if err != nil {
		return nil, err
	}
	tool, pods := legacyTools[f], n.Ranges[f]
	mend := fmt.Sprintf("%s -I FORWARD -s %s -j ACCEPT; %s -I FORWARD -d %s -j ACCEPT", tool, pods, tool, pods)
	switch {
	case drop && rules == 0:
		return &Finding{Rule: "policy drop", Mend: mend, Certain: true}, nil
	case drop:
		return &Finding{Rule: fmt.Sprintf("policy drop, after %d rules", rules), Mend: mend}, nil
	case rules > 0:
		return &Finding{Rule: fmt.Sprintf("%d rules (%s -S FORWARD)", rules, tool), Mend: mend}, nil
	}
	return nil, nil
}

// Numbers of the socket options (IPT_SO_GET_INFO, IP6T_SO_GET_INFO and so on),
// and where things are in struct ipt_entry and ip6t_entry, in bytes.
const (
	optInfo    = 64
	optEntries = 65
	infoLen    = 84
	nameLen    = 32
	hookAt     = 36 // hook_entry[] in struct ipt_getinfo; five of each.
	underAt    = 56 // underflow[]: where the policies are.
	sizeAt     = 80
	entriesAt  = 40 // Of the entries in struct ipt_get_entries, aligned.
	// verdictDrop is how x_tables stores NF_DROP: less one, and negative.
	verdictDrop = -1
)

var (
	socketLevels = subnet.PerFamily[int]{unix.SOL_IP, unix.SOL_IPV6}
	socketDomain = subnet.PerFamily[int]{unix.AF_INET, unix.AF_INET6}
	targetAt     = subnet.PerFamily[int]{88, 140} // target_offset; next_offset follows.
)

// errOddTable is the answer to a table that is not built as it should be.
var errOddTable = errors.New("table is not as expected")

// mostLegacy bounds a table that is read, in bytes.
const mostLegacy = 64 << 20

// legacyForward reads the chain FORWARD of the table filter of legacy iptables:
// its policy, and how many rules come before it.
func legacyForward(f subnet.Family) (drop bool, rules int, err error) {
	info, entries, err := legacyEntries(f, filterTable)
	if err != nil {
		return false, 0, err
	}
	from, to := word(info, hookAt+4*unix.NF_INET_FORWARD), word(info, underAt+4*unix.NF_INET_FORWARD)
	for at := from; ; rules++ {
		if at < 0 || at+targetAt[f]+4 > len(entries) {
			return false, 0, errOddTable
		}
		target := at + int(binary.NativeEndian.Uint16(entries[at+targetAt[f]:]))
		next := int(binary.NativeEndian.Uint16(entries[at+targetAt[f]+2:]))
		if at >= to {
			// A standard target: its verdict follows its head of 32 bytes.
			if target+36 > len(entries) || bytes.IndexByte(entries[target+2:target+32], 0) != 0 {
				return false, 0, errOddTable
			}
			return int32(binary.NativeEndian.Uint32(entries[target+32:])) == verdictDrop, rules, nil
		}
		if next == 0 {
			return false, 0, errOddTable
		}
		at += next
	}
}

// legacyTables are the tables of legacy iptables that are in use. A kernel without it
// has none.
func legacyTables(f subnet.Family) ([]string, error) {
	names, err := os.ReadFile(legacyNames[f])
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil, nil
	}
	return strings.Fields(string(names)), err
}

// legacyEntries reads a table of legacy iptables: what describes it (struct
// ipt_getinfo), and its rules.
func legacyEntries(f subnet.Family, name string) (info, entries []byte, err error) {
	fd, err := unix.Socket(socketDomain[f], unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	info = make([]byte, infoLen)
	copy(info, name)
	if err := getsockopt(fd, socketLevels[f], optInfo, info); err != nil {
		return nil, nil, err
	}
	size := word(info, sizeAt)
	if size > mostLegacy {
		return nil, nil, fmt.Errorf("%w: %d bytes", errOddTable, size)
	}
	table := make([]byte, entriesAt+size)
	copy(table, name)
	binary.NativeEndian.PutUint32(table[nameLen:], uint32(size))
	if err := getsockopt(fd, socketLevels[f], optEntries, table); err != nil {
		return nil, nil, err
	}
	return info, table[entriesAt:], nil
}

// word reads a number of the kernel's.
func word(b []byte, at int) int { return int(binary.NativeEndian.Uint32(b[at:])) }

// getsockopt reads an option that is a struct of any size, in and out.
func getsockopt(fd, level, name int, value []byte) error {
	length := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
