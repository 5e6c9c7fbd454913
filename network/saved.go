package network

import (
	"path/filepath"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// SavedLease returns the lease of the node that was saved in a state folder, and
// whose it is; there is none where nothing is saved.
func SavedLease(stateDir string) (node string, lease subnet.Lease, there bool, err error) {
	s, err := readSnapshot(stateDir)
	if err != nil || s == nil {
		return "", subnet.Lease{}, false, err
	}
	return s.Node, s.Lease, true, nil
}

// Saved is what a node keeps of the store for a time when that is away.
type Saved struct {
	Node   string
	Config []byte // As written.
	Lease  subnet.Lease
	// Written is when, Expires until when the store keeps the lease; zero for not known.
	Written, Expires time.Time
	Epoch            string
	Revision         int64
	Peers            subnet.SavedPeers
}

// ReadSaved returns what a node has saved in a state folder, nil where there is nothing.
func ReadSaved(stateDir string) (*Saved, error) {
	s, err := readSnapshot(stateDir)
	if err != nil || s == nil {
		return nil, err
	}
	return &Saved{s.Node, s.Config, s.Lease, s.Written, s.Expires, s.Epoch, s.Revision, s.Peers}, nil
}

// SnapshotPath is the file in a state folder that holds all that is saved.
func SnapshotPath(stateDir string) string { return filepath.Join(stateDir, snapshotFile) }

// HalfWritten are the files in a state folder that daemons which were killed left of
// snapshots that they wrote.
func HalfWritten(stateDir string) []string {
	// The names are renameio's.
	found, _ := filepath.Glob(filepath.Join(stateDir, "."+snapshotFile+"[0-9]*"))
	return found
}
