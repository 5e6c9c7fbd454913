package bench

import "github.com/ripstop-net/ripstop/network/lab"

// Memory is a process's resident memory in bytes.
type Memory struct {
	// Now is the memory of the moment, Most the most that it ever was, and Heap
	// the part of Now that is no file's (the program's own code is one).
	Now, Most, Heap uint64
}

func readMemory(pid int) (m Memory, err error) {
	err = lab.ReadMemory(pid, "status", map[string]*uint64{"VmRSS:": &m.Now, "VmHWM:": &m.Most, "RssAnon:": &m.Heap})
	return m, err
}
