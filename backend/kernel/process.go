package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// flanneldName is what the name of flannel's daemon begins with, as a process.
const flanneldName = "flanneld"

// flanneld finds a process of flannel's daemon in a network namespace, that of this
// process where ns is nil. 0 says that none is to be seen: there may be one in a
// container whose processes are not visible here, as ours are that are in one.
func flanneld(ns *os.File) (pid int, err error) {
	own, err := namespaceOf(ns)
	if err != nil {
		return 0, fmt.Errorf("identify the network namespace: %w", err)
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !bytes.HasPrefix(comm, []byte(flanneldName)) {
			continue // It has ended, or is hidden.
		}
		dir := filepath.Dir(name)
		var theirs unix.Stat_t
		err = unix.Stat(filepath.Join(dir, "ns", "net"), &theirs)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err == nil && (theirs.Dev != own.Dev || theirs.Ino != own.Ino):
			continue
		}
		// One of which it may not be known where it is (ptrace_may_access) is taken for
		// one that is here: hardly anybody has it elsewhere.
		return strconv.Atoi(filepath.Base(dir))
	}
	return 0, nil
}

func namespaceOf(ns *os.File) (id unix.Stat_t, err error) {
	if ns == nil {
		return id, unix.Stat("/proc/self/ns/net", &id)
	}
	return id, unix.Fstat(int(ns.Fd()), &id)
}
