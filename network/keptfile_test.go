package network

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/subnet"
)

// TestSubnetFileIsPutBack: whatever another hand makes of the file, a look at it
// names that, and it is there again as it was. What happens again and again is
// undone more and more slowly and said once.
func TestSubnetFileIsPutBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flannel", "subnet.env")
	env := envfile.Env{MTU: 1450, IPMasq: true}
	env.Networks[subnet.V4], env.Subnets[subnet.V4] = netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("10.5.7.0/24")
	whole := env.Bytes()
	text := func(text []byte) func() error { return func() error { return os.WriteFile(path, text, 0o644) } }
	instead := func(make func() error) func() error {
		return func() error { return errors.Join(os.Remove(path), make()) }
	}
	for name, harm := range map[string]struct {
		do   func() error
		want string
	}{
		"deleted":          {func() error { return os.Remove(path) }, "is gone or empty"},
		"folder deleted":   {func() error { return os.RemoveAll(filepath.Dir(path)) }, "is gone or empty"},
		"emptied":          {text(nil), "is gone or empty"},
		"another's":        {text([]byte("FLANNEL_SUBNET=10.9.9.1/24\n")), "was overwritten by another: it has 10.9.9.0/24"},
		"with another MTU": {text(bytes.Replace(whole, []byte("=1450"), []byte("=9000"), 1)), "was changed by another"},
		"a pipe":           {instead(func() error { return unix.Mkfifo(path, 0o644) }), "is no regular file"},
		"a device":         {instead(func() error { return os.Symlink("/dev/zero", path) }), "is no regular file"},
		"broken":           {text([]byte("FLANNEL_MTU=many\n")), "FLANNEL_MTU"},
	} {
		t.Run(name, func(t *testing.T) {
			core, logs := observer.New(zap.InfoLevel)
			k := newKeptFile(path, zap.New(core))
			if _, problem := k.status(); problem != "it is not written yet" {
				t.Errorf("before: %q", problem)
			}
			if err := k.write(env); err != nil {
				t.Fatal(err)
			}
			if now, problem := k.status(); problem != "" || now.Path != path || now.Restored != 0 {
				t.Errorf("written: %+v, %q", now, problem)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- k.keep(ctx) }()
			for times := range uint64(2) {
				if err := harm.do(); err != nil {
					t.Fatal(err)
				}
				if _, problem := k.status(); !strings.Contains(problem, harm.want) {
					t.Errorf("harmed: %q, want %q", problem, harm.want)
				}
				for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
					now, problem := k.status()
					if problem == "" && now.Restored == times+1 {
						break
					}
					if time.Now().After(end) {
						t.Fatalf("not put back: %+v, %q", now, problem)
					}
				}
				if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, whole) {
					t.Errorf("%q, %v, want %q", have, err, whole)
				}
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if lines := logs.All(); len(lines) != 1 || !strings.Contains(lines[0].Message, "as another hand changed it") {
				t.Errorf("said %v", lines)
			}
		})
	}
}

// TestNodeKeepsItsSubnetFile while nobody asks how it is: it hears of what befalls the
// file, and looks by itself where it hears nothing.
func TestNodeKeepsItsSubnetFile(t *testing.T) {
	for name, deaf := range map[string]bool{"heard": false, "unheard": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.tune = func(n *Node) {
				if deaf {
					n.file.listen = func(string) (*fsnotify.Watcher, error) { return nil, unix.EMFILE }
				}
			}
			r.start()
			r.ready()
			whole, err := os.ReadFile(r.opts.SubnetFile)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(r.opts.SubnetFile); err != nil {
				t.Fatal(err)
			}
			r.eventually("the file is back", func() bool {
				have, err := os.ReadFile(r.opts.SubnetFile)
				return err == nil && bytes.Equal(have, whole)
			})
			if n := r.logs.FilterMessageSnippet("not heard of").Len(); n != 0 != deaf {
				t.Errorf("it is said %d times that nothing is heard", n)
			}
		})
	}
}
