package network

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet"
)

// snapshot is what a node needs to come up while the store is away. It is kept
// in --state-dir and outlives a reboot.
type snapshot struct {
	Node   string
	Config []byte // As written.
	Lease  subnet.Lease
	// Expires is until when the store keeps the lease's record, whatever becomes
	// of the node; zero for not known. Written is when this was saved. Both are
	// by the wall clock: there is no other that outlives a reboot.
	Expires, Written time.Time
	Epoch            string
	Revision         int64
	Peers            []subnet.Saved
}

const (
	snapshotFile = "snapshot"
	// snapshotVersion is raised with every change that an older reader would
	// misread.
	snapshotVersion = "ripstop snapshot 1"
)

// errNoSnapshot is why nothing can stand in for a store on a node's first start.
var errNoSnapshot = errors.New("nothing is saved")

// fit tells whether the snapshot can stand in for the store now, and gives its
// config. Nobody else can have the subnet as long as the lease lasts.
func (s *snapshot) fit(now time.Time) (chosenConfig, error) {
	c, err := parseConfig(s.Config)
	switch {
	case err != nil:
		return c, err
	case c.config.CheckOwn(s.Lease.Subnets) != nil:
		return c, c.config.CheckOwn(s.Lease.Subnets)
	case now.Before(s.Written):
		return c, fmt.Errorf("it was saved at %s, which this host's clock takes for the future", s.Written.Format(time.RFC3339))
	case s.Lease.Reservation():
		return c, nil
	case s.Expires.IsZero():
		return c, errors.New("it does not say how long this node's lease lasts")
	case !now.Before(s.Expires):
		return c, fmt.Errorf("this node's lease may have run out at %s and its subnet be another's", s.Expires.Format(time.RFC3339))
	}
	return c, nil
}

// fields describe it in the log.
func (s *snapshot) fields() []zap.Field {
	return []zap.Field{
		zap.Stringer("subnets", s.Lease.Subnets), zap.Int("peers", len(s.Peers)),
		zap.Time("saved", s.Written), zap.Time("lease_lasts_until", s.Expires),
	}
}

// encode gives the file: a line with version and checksum, then the rest as gob.
func (s *snapshot) encode() ([]byte, error) {
	var body bytes.Buffer
	if err := gob.NewEncoder(&body).Encode(s); err != nil {
		return nil, fmt.Errorf("encode the snapshot: %w", err)
	}
	return append(fmt.Appendf(nil, "%s %x\n", snapshotVersion, sha256.Sum256(body.Bytes())), body.Bytes()...), nil
}

// decodeSnapshot reads what encode gave, whole and unharmed, and nothing else.
func decodeSnapshot(file []byte) (*snapshot, error) {
	head, body, ok := bytes.Cut(file, []byte("\n"))
	version, sum, marked := cutLast(head, ' ')
	switch {
	case !ok || !marked || !bytes.HasPrefix(head, []byte("ripstop snapshot ")):
		return nil, errors.New("it is no snapshot")
	case string(version) != snapshotVersion:
		return nil, fmt.Errorf("it is marked %q, this program reads %q", version, snapshotVersion)
	case string(sum) != fmt.Sprintf("%x", sha256.Sum256(body)):
		return nil, errors.New("its checksum is wrong: it is torn or was changed")
	}
	var s snapshot
	if err := gob.NewDecoder(bytes.NewReader(body)).Decode(&s); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	return &s, nil
}

func cutLast(b []byte, sep byte) (before, after []byte, ok bool) {
	at := bytes.LastIndexByte(b, sep)
	if at < 0 {
		return nil, nil, false
	}
	return b[:at], b[at+1:], true
}

// readSnapshot reads the snapshot in a folder, nil where there is none.
func readSnapshot(dir string) (*snapshot, error) {
	path := filepath.Join(dir, snapshotFile)
	file, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := decodeSnapshot(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// write puts the snapshot in place whole.
func (s *snapshot) write(dir string) error {
	file, err := s.encode()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the state folder (--state-dir): %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, snapshotFile), file, 0o600); err != nil {
		return fmt.Errorf("write the snapshot (--state-dir): %w", err)
	}
	return nil
}
