package network

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
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
	// Peers are encoded one by one behind the rest: together they are too many.
	Peers subnet.SavedPeers
}

const (
	snapshotFile = "snapshot"
	// snapshotVersion is raised with every change that an older reader would
	// misread.
	snapshotVersion = "ripstop snapshot 2"
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
		zap.Stringer("subnets", s.Lease.Subnets), zap.Int("peers", s.Peers.Len()),
		zap.Time("saved", s.Written), zap.Time("lease_lasts_until", s.Expires),
	}
}

// encode writes the file: a line with version and checksum, then the rest as
// gob, the peers one by one.
func (s *snapshot) encode(to io.WriteSeeker) error {
	sum := sha256.New()
	head := func() []byte { return fmt.Appendf(nil, "%s %x\n", snapshotVersion, sum.Sum(nil)) }
	if _, err := to.Write(head()); err != nil { // To be written over once the sum is known.
		return err
	}
	out := bufio.NewWriter(io.MultiWriter(to, sum))
	body := gob.NewEncoder(out)
	err := body.Encode(snapshotHead{s.Node, s.Config, s.Lease, s.Expires, s.Written, s.Epoch, s.Revision, s.Peers.Len()})
	for p := range s.Peers.All() {
		if err != nil {
			break
		}
		err = body.Encode(p)
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return fmt.Errorf("encode the snapshot: %w", err)
	}
	if _, err := to.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err = to.Write(head())
	return err
}

// snapshotHead is what is ahead of the peers.
type snapshotHead struct {
	Node             string
	Config           []byte
	Lease            subnet.Lease
	Expires, Written time.Time
	Epoch            string
	Revision         int64
	Peers            int
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
	rest := bytes.NewReader(body)
	from := gob.NewDecoder(rest)
	var h snapshotHead
	if err := from.Decode(&h); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	s := &snapshot{
		Node: h.Node, Config: h.Config, Lease: h.Lease, Expires: h.Expires, Written: h.Written, Epoch: h.Epoch, Revision: h.Revision,
	}
	const least = 32 // Bytes that a peer takes at least.
	s.Peers.Grow(min(h.Peers, len(body)/least))
	for range h.Peers {
		var p subnet.Saved
		if err := from.Decode(&p); err != nil {
			return nil, fmt.Errorf("decode: %w", err)
		}
		s.Peers.Add(p)
	}
	return s, nil
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
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the state folder (--state-dir): %w", err)
	}
	path := filepath.Join(dir, snapshotFile)
	file, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o600), renameio.WithTempDir(dir))
	if err == nil {
		defer func() { _ = file.Cleanup() }() // Of what was not put in place.
		if err = s.encode(file); err == nil {
			err = file.CloseAtomicallyReplace()
		}
	}
	if err != nil {
		return fmt.Errorf("write the snapshot (--state-dir): %w", err)
	}
	return nil
}
