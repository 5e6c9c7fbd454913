package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// state is what a running lab tells other commands.
type state struct {
	// PID is the lab's process and Started its start time in clock ticks after
	// the boot: a number that was given to another process since is not taken
	// for the lab.
	PID     int
	Started uint64
	Mode    lab.Mode
	// Machines is empty while the lab comes up.
	Machines []machine
}

// machine is a node, a pod or a part of the world around them.
type machine struct {
	Name string
	// FD is the lab's open file of the namespace.
	FD int
	// Addresses are what others call it by.
	Addresses []netip.Addr
	// Note says what it is.
	Note string
}

// folder is where the lab keeps everything.
func (p *place) folder() string { return filepath.Join(p.dir, p.name) }

func (p *place) stateFile() string { return filepath.Join(p.folder(), "state.json") }

// ownState is the state of this process's lab before it has machines.
func ownState(mode lab.Mode) (state, error) {
	started, err := startTime(os.Getpid())
	return state{PID: os.Getpid(), Started: started, Mode: mode}, err
}

// describe is the state of a lab that stands.
func describe(l *lab.Lab) (state, error) {
	s, err := ownState(l.Mode())
	if err != nil {
		return s, err
	}
	for _, h := range l.Hosts {
		env, err := h.Env()
		if err != nil {
			return state{}, err
		}
		m := machine{Name: h.Name, FD: h.Namespace.FD(), Note: "subnet " + env.Subnets.String()}
		for _, f := range l.Families() {
			m.Addresses = append(m.Addresses, h.Address(f))
		}
		s.Machines = append(s.Machines, m)
	}
	for _, p := range l.Pods() {
		m := machine{Name: p.Name, FD: p.Namespace.FD(), Note: "on " + p.Host.Name}
		for _, f := range l.Families() {
			m.Addresses = append(m.Addresses, p.Addresses[f])
		}
		s.Machines = append(s.Machines, m)
	}
	store := machine{Name: "etcd", FD: l.EtcdNamespace().FD(), Note: "the nodes' store"}
	for _, f := range l.Families() {
		store.Addresses = append(store.Addresses, l.EtcdAddress(f))
	}
	bridge := machine{Name: "underlay", FD: l.Underlay().FD(), Note: "the bridge between the nodes"}
	s.Machines = append(s.Machines, store, bridge)
	return s, nil
}

func (p *place) writeState(s state) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		err = renameio.WriteFile(p.stateFile(), append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the lab's state: %w", err)
	}
	return nil
}

// errNotUp is wrapped where a lab is asked for that does not run.
var errNotUp = errors.New("is not up")

// running returns the state of a lab that runs.
func (p *place) running() (state, error) {
	var s state
	text, err := os.ReadFile(p.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("lab %q %w: bring it up with '%s up%s'", p.name, errNotUp, os.Args[0], p.flags())
	}
	if err != nil {
		return s, fmt.Errorf("read the lab's state: %w", err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("read the lab's state %s: %w", p.stateFile(), err)
	}
	if started, err := startTime(s.PID); err != nil || started != s.Started {
		return s, fmt.Errorf("lab %q %w: its process %d is gone; '%s down%s' clears its folder", p.name, errNotUp, s.PID, os.Args[0], p.flags())
	}
	return s, nil
}

// find returns a machine by its name.
func (s state) find(name string) (machine, error) {
	const shown = 10
	var names []string
	for _, m := range s.Machines {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	if len(names) == 0 {
		return machine{}, errors.New("the lab is still coming up")
	}
	if len(names) > shown {
		names = append(names[:shown], fmt.Sprintf("and %d more ('%s list' shows them)", len(names)-shown, os.Args[0]))
	}
	return machine{}, fmt.Errorf("the lab has no %q: there are %s", name, strings.Join(names, ", "))
}

// open opens a machine's namespace through the lab's process.
func (s state) open(m machine) (*lab.Namespace, error) {
	return lab.OpenNamespace(m.Name, fmt.Sprintf("/proc/%d/fd/%d", s.PID, m.FD))
}

// address is a machine's address in a family.
func (m machine) address(f subnet.Family) (netip.Addr, bool) {
	for _, a := range m.Addresses {
		if subnet.FamilyOf(a) == f {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// startTime reads when a process started, in clock ticks after the boot
// (proc_pid_stat(5), field 22). The command's name before it may hold anything,
// also spaces and brackets.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := cutLast(string(text), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("process %d: its stat has no start time", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// take makes the lab's name this process's own until it ends, and its folder
// new: what lies there is left from a lab that crashed.
func (p *place) take() (release func(), err error) {
	lock, err := p.lock()
	if err != nil {
		return nil, err
	}
	if err = os.RemoveAll(p.folder()); err == nil {
		err = os.MkdirAll(p.folder(), 0o755)
	}
	if err != nil {
		unlock(lock)
		return nil, fmt.Errorf("make the lab's folder: %w", err)
	}
	return func() { unlock(lock) }, nil
}

// lock holds the lab's name by a lock on a file, which ends with the process
// however that ends.
func (p *place) lock() (*os.File, error) {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of all labs: %w", err)
	}
	path := p.folder() + ".lock"
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, fmt.Errorf("lock the lab's name: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("lab %q is up already: use it, take it away with '%s down%s', or bring up another with --name", p.name, os.Args[0], p.flags())
			}
			return nil, fmt.Errorf("lock the lab's name: %w", err)
		}
		// The one that held it removed the file as it went: then this lock is
		// on a file that nobody else sees.
		ours, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(ours, there) {
			return f, nil
		}
		_ = f.Close()
	}
}

func unlock(f *os.File) {
	_ = os.Remove(f.Name())
	_ = f.Close()
}
