package envfile

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// The file's text as flannel writes it, per family mode.
var cases = map[string]struct {
	env  Env
	text string
}{
	"ipv4": {
		Env{
			Networks: subnet.PerFamily[netip.Prefix]{netip.MustParsePrefix("10.5.0.0/16")},
			Subnets:  subnet.Subnets{netip.MustParsePrefix("10.5.87.0/24")}, MTU: 1450, IPMasq: true,
		},
		"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.87.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
	},
	"ipv6": {
		Env{
			Networks: subnet.PerFamily[netip.Prefix]{subnet.V6: netip.MustParsePrefix("fd00:10:5::/48")},
			Subnets:  subnet.Subnets{subnet.V6: netip.MustParsePrefix("fd00:10:5:1f::/64")}, MTU: 1430,
		},
		"FLANNEL_IPV6_NETWORK=fd00:10:5::/48\nFLANNEL_IPV6_SUBNET=fd00:10:5:1f::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n",
	},
	"dual": {
		Env{
			Networks: subnet.PerFamily[netip.Prefix]{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:10:5::/48")},
			Subnets:  subnet.Subnets{netip.MustParsePrefix("10.5.87.0/24"), netip.MustParsePrefix("fd00:10:5:1f::/64")}, MTU: 1430, IPMasq: true,
		},
		"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.87.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:5::/48\nFLANNEL_IPV6_SUBNET=fd00:10:5:1f::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n",
	},
}

func TestFileIsFlannelsToTheByte(t *testing.T) {
	for name, tc := range cases {
		path := filepath.Join(t.TempDir(), "a", "b", "subnet.env")
		if err := tc.env.Write(path); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil || string(text) != tc.text {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, text, tc.text)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
		back, err := Read(path)
		if err != nil || back != tc.env {
			t.Errorf("%s: read back %+v, %v", name, back, err)
		}
	}
}

func TestWriteLeavesAFileThatIsRightAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	for range 2 {
		if err := cases["dual"].env.Write(path); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := os.Stat(path)
	if err := cases["dual"].env.Write(path); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(path); !os.SameFile(before, after) || before.ModTime() != after.ModTime() {
		t.Error("written again")
	}
}

func TestReadBearsWhatItMayFind(t *testing.T) {
	if e, err := Read(filepath.Join(t.TempDir(), "none")); err != nil || e != (Env{}) {
		t.Errorf("no file: %+v, %v", e, err)
	}
	e, err := Parse([]byte("# by hand\n\nFLANNEL_SUBNET=10.5.87.1/24\nOTHER=1\n"))
	if err != nil || e.Subnets[subnet.V4].String() != "10.5.87.0/24" {
		t.Errorf("by hand: %+v, %v", e, err)
	}
	for _, bad := range []string{"FLANNEL_SUBNET=", "FLANNEL_SUBNET=x", "FLANNEL_SUBNET=fd00::1/64", "FLANNEL_MTU=x", "FLANNEL_IPMASQ=maybe"} {
		if e, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", bad, e)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, tc := range cases {
		f.Add([]byte(tc.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(e.Bytes()); err == nil && again.Subnets != e.Subnets {
			t.Fatalf("%q: %+v then %+v", text, e, again)
		}
	})
}

// TestWhatIsNoFileIsNotWaitedFor: neither a pipe without a writer nor a device that
// has no end nor a huge file holds anybody up, and each is replaced.
func TestWhatIsNoFileIsNotWaitedFor(t *testing.T) {
	for what, make := range map[string]func(path string) error{
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o644) },
		"device":    func(path string) error { return os.Symlink("/dev/zero", path) },
		"huge file": func(path string) error { return os.WriteFile(path, nil, 0o644) },
		"folder":    func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		path := filepath.Join(t.TempDir(), "subnet.env")
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if what == "huge file" {
			if err := os.Truncate(path, 1<<40); err != nil {
				t.Fatal(err)
			}
		}
		done := goDo(func() error { _, err := Read(path); return err })
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: it is waited for", what)
		}
		err := Env{MTU: 1450}.Write(path)
		if now, readErr := Read(path); (err != nil || readErr != nil || now.MTU != 1450) != (what == "folder") {
			t.Errorf("%s in the file's place: %v, %+v, %v", what, err, now, readErr)
		}
	}
}

func goDo(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}
