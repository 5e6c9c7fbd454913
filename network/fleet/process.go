package fleet

import "github.com/ripstop-net/ripstop/network/lab"

// Memory is what a process takes, in bytes: what is resident, its share of that
// where pages are divided among the processes that have them (most of all the
// program's own code), and the part that is no file's.
type Memory struct {
	Resident, Share, Own uint64
}

func readMemory(pid int) (m Memory, err error) {
	err = lab.ReadMemory(pid, "smaps_rollup", map[string]*uint64{"Rss:": &m.Resident, "Pss:": &m.Share, "Anonymous:": &m.Own})
	return m, err
}
