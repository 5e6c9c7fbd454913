package network

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/subnet"
)

// heardFile is a subnet file that is written, and nobody's status is asked for.
func heardFile(t *testing.T) (k *keptFile, env envfile.Env, logs *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	k = newKeptFile(filepath.Join(t.TempDir(), "flannel", "subnet.env"), zap.New(core))
	env = envfile.Env{MTU: 1450}
	env.Networks[subnet.V4], env.Subnets[subnet.V4] = netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("10.5.7.0/24")
	if err := k.write(env); err != nil {
		t.Fatal(err)
	}
	return k, env, logs
}

// runAll runs tasks until the test's end.
func runAll(t *testing.T, tasks ...func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group errgroup.Group
	for _, task := range tasks {
		group.Go(func() error { return task(ctx) })
	}
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func says(path string, want []byte) bool {
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, want)
}

// TestSubnetFileIsHeardOf: nobody looks at the file, and it is put back twice, after
// all that befell its folder.
func TestSubnetFileIsHeardOf(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"deleted":   os.Remove,
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"another's": func(path string) error { return os.WriteFile(path, []byte("FLANNEL_MTU=9000\n"), 0o644) },
		"replaced": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", nil, 0o644), os.Rename(path+".new", path))
		},
		"folder deleted": func(path string) error {
			for { // The file may be put back before its folder is gone.
				if err := os.RemoveAll(filepath.Dir(path)); !errors.Is(err, unix.ENOTEMPTY) {
					return err
				}
			}
		},
		"folder moved away": func(path string) error { return os.Rename(filepath.Dir(path), filepath.Dir(path)+time.Now().String()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, env, logs := heardFile(t)
			listening := make(chan struct{}, 9)
			k.listen = func(folder string) (*fsnotify.Watcher, error) {
				w, err := listenTo(folder)
				listening <- struct{}{}
				return w, err
			}
			runAll(t, k.keep, k.hear)
			for range 2 {
				select { // After each time that it was put.
				case <-listening:
				case <-time.After(patience):
					t.Fatal("it is not listened to the folder that there is")
				}
				if err := harm(k.path); err != nil {
					t.Fatal(err)
				}
				for end := time.Now().Add(patience); !says(k.path, env.Bytes()); time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal("it is not put back")
					}
				}
			}
			if n := logs.FilterMessageSnippet("as another hand changed it").Len(); n != 1 {
				t.Errorf("said %v", logs.All())
			}
		})
	}
}

// TestUnheardSubnetFile: where the kernel announces nothing, that is said once, and
// looks find what is to be put back.
func TestUnheardSubnetFile(t *testing.T) {
	k, env, logs := heardFile(t)
	tried := make(chan struct{})
	deaf := true
	k.listen = func(folder string) (*fsnotify.Watcher, error) {
		defer func() { tried <- struct{}{} }()
		if deaf {
			return nil, errors.New("too many open files")
		}
		return listenTo(folder)
	}
	runAll(t, k.keep, k.hear)
	<-tried
	if err := os.Remove(k.path); err != nil {
		t.Fatal(err)
	}
	if _, problem := k.status(); problem == "" {
		t.Error("a look finds nothing")
	}
	<-tried // It was put back, and it is tried again.
	if !says(k.path, env.Bytes()) {
		t.Error("it is not put back")
	}
	if n := logs.FilterMessageSnippet("not heard of").Len(); n != 1 {
		t.Errorf("said %v", logs.All())
	}
	deaf = false
	env.MTU = 1400
	if err := k.write(env); err != nil {
		t.Fatal(err)
	}
	<-tried
	for end := time.Now().Add(patience); logs.FilterMessageSnippet("heard of again").Len() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("said %v", logs.All())
		}
	}
	if n := logs.FilterMessageSnippet("not heard of").Len(); n != 1 {
		t.Errorf("said %v", logs.All())
	}
}

// TestOwnWritesAreNoNews: what the node writes itself is neither put back nor told of,
// nor is another's file beside it.
func TestOwnWritesAreNoNews(t *testing.T) {
	k, env, logs := heardFile(t)
	runAll(t, k.keep, k.hear)
	for mtu := range 20 {
		env.MTU = 1300 + mtu
		if err := k.write(env); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(k.path+".lock", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		time.Sleep(fileRest)
	}
	if now, problem := k.status(); problem != "" || now.Restored != 0 || logs.Len() != 0 {
		t.Errorf("%+v, %q, said %v", now, problem, logs.All())
	}
}

// TestHearingTakesBreath: who writes the file without end wakes nobody without end.
func TestHearingTakesBreath(t *testing.T) {
	k, env, _ := heardFile(t)
	listening := make(chan struct{}, 1)
	k.listen = func(folder string) (*fsnotify.Watcher, error) {
		defer func() { listening <- struct{}{} }()
		return listenTo(folder)
	}
	began := time.Now()
	runAll(t, k.hear)
	<-listening
	wakes, writes := 0, 0
	for writes < 500 || wakes < 3 {
		if err := os.WriteFile(k.path, env.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		writes++
		select {
		case <-k.found:
			wakes++
		default:
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%d wakes", wakes)
		}
	}
	// One is for the beginning, one may wait, one is of the last moment.
	if most := int(time.Since(began)/fileRest) + 3; wakes > most {
		t.Errorf("%d wakes of %d writes in %s, want at most %d", wakes, writes, time.Since(began), most)
	}
	t.Logf("%d wakes of %d writes in %s", wakes, writes, time.Since(began))
}

// TestFolderThatGoesBeforeItIsListenedTo: it goes as the node begins anew to listen, so
// that nothing is announced.
func TestFolderThatGoesBeforeItIsListenedTo(t *testing.T) {
	k, env, logs := heardFile(t)
	var gone error
	removed := make(chan struct{})
	k.listen = func(folder string) (*fsnotify.Watcher, error) {
		select {
		case <-removed:
		default:
			gone = os.RemoveAll(folder)
			close(removed)
		}
		return listenTo(folder)
	}
	runAll(t, k.keep, k.hear)
	if <-removed; gone != nil {
		t.Fatal(gone)
	}
	for end := time.Now().Add(patience); !says(k.path, env.Bytes()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it is not put back: said %v", logs.All())
		}
	}
}
