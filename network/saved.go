package network

import (
	"path/filepath"

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

// SnapshotPath is the file in a state folder that holds all that is saved.
func SnapshotPath(stateDir string) string { return filepath.Join(stateDir, snapshotFile) }
