package network

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/google/renameio/v2"

	"github.com/ripstop-net/ripstop/subnet"
)

// testSnapshot has n peers of both families.
func testSnapshot(n int) *snapshot {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	s := &snapshot{Node: "node1", Config: []byte(testConfig), Epoch: "EPOCH@1", Revision: 42, Expires: at.Add(time.Hour), Written: at}
	for i := range n {
		l := subnet.Lease{Node: fmt.Sprint("node", i), Backend: "vxlan", ID: int64(i) << 40, Created: int64(i), Modified: int64(i + 1)}
		l.Subnets = subnet.Subnets{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}
		l.Endpoints[0] = subnet.Endpoint{PublicIP: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), VNI: 1, MAC: subnet.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}}
		if i%2 == 1 {
			l.Subnets[1] = netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/64", i&0xffff))
			l.Endpoints[1] = subnet.Endpoint{PublicIP: netip.MustParseAddr(fmt.Sprintf("fd99::%x", i&0xffff)), VNI: 1, MAC: subnet.MAC{2, 6}}
		}
		s.Peers.Add(subnet.Saved{Lease: l, Held: i%3 == 0})
	}
	for p := range s.Peers.All() {
		s.Lease = p.Lease
		break
	}
	return s
}

func TestSnapshotComesBackAsItWas(t *testing.T) {
	for _, n := range []int{0, 1, 100} {
		dir := filepath.Join(t.TempDir(), "state")
		want := testSnapshot(n)
		if err := want.write(dir); err != nil {
			t.Fatal(err)
		}
		got, err := readSnapshot(dir)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%d peers: %v\n%+v\n%+v", n, err, got, want)
		}
		if info, err := os.Stat(filepath.Join(dir, snapshotFile)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
	if s, err := readSnapshot(t.TempDir()); s != nil || err != nil {
		t.Errorf("of none: %v, %v", s, err)
	}
}

// onFile is a snapshot as it is on disk.
func onFile(t testing.TB, s *snapshot) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := s.write(dir); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(dir, snapshotFile))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// TestEveryHarmIsFound: whichever byte is changed, wherever the file is torn.
func TestEveryHarmIsFound(t *testing.T) {
	file := onFile(t, testSnapshot(3))
	for i := range file {
		harmed := bytes.Clone(file)
		harmed[i] ^= 0x10
		for _, f := range [][]byte{harmed, file[:i]} {
			if s, err := decodeSnapshot(f); err == nil {
				t.Fatalf("harm at %d went unnoticed: %+v", i, s)
			}
		}
	}
	if _, err := decodeSnapshot(append(file, 0)); err == nil {
		t.Error("a byte too many went unnoticed")
	}
}

// FuzzDecodeSnapshot: no panic, and nothing but what encode gave is read.
func FuzzDecodeSnapshot(f *testing.F) {
	for _, n := range []int{0, 2} {
		f.Add(onFile(f, testSnapshot(n)))
	}
	f.Add([]byte(snapshotVersion + " e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := decodeSnapshot(file)
		if (s == nil) != (err != nil) {
			t.Fatalf("%v, %v", s, err)
		}
		if err != nil {
			return
		}
		head, body, _ := bytes.Cut(file, []byte("\n"))
		if want := fmt.Sprintf("%s %x", snapshotVersion, sha256.Sum256(body)); string(head) != want {
			t.Fatalf("%q was read, its head should be %q", head, want)
		}
	})
}

func TestTokenStays(t *testing.T) {
	dir := t.TempDir()
	one, booted, err := token(dir)
	two, again, err2 := token(dir)
	if err := errors.Join(err, err2); err != nil || one != two || len(one) < 20 || !booted || again {
		t.Errorf("%q %t, %q %t, %v", one, booted, two, again, err)
	}
	if three, _, err := token(t.TempDir()); err != nil || three == one {
		t.Errorf("%q, %v", three, err)
	}
}

// BenchmarkSnapshot writes and reads what the largest network has.
func BenchmarkSnapshot(b *testing.B) {
	dir, s := b.TempDir(), testSnapshot(60_000)
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			if err := s.write(dir); err != nil {
				b.Fatal(err)
			}
		}
		if info, err := os.Stat(filepath.Join(dir, snapshotFile)); err == nil {
			b.ReportMetric(float64(info.Size())/1e6, "MB")
		}
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if _, err := readSnapshot(dir); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestHalfWrittenIsFound: what a daemon leaves that is killed as it writes.
func TestHalfWrittenIsFound(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, snapshotFile)
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Close(), os.WriteFile(path, nil, 0o600), os.WriteFile(path+".kept", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := HalfWritten(dir); len(got) != 1 || got[0] != file.Name() {
		t.Errorf("found %q, want %q", got, file.Name())
	}
}
