package rundir

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// TestDaemonIsKnownInItsNamespace, and in no other, as long as it lives.
func TestDaemonIsKnownInItsNamespace(t *testing.T) {
	for name, dir := range map[string]string{
		"usual": "/run/other", "odd": "/run/a \"b\"\n@ripstopd/c", "long": "/run/" + strings.Repeat("long/", 40),
	} {
		t.Run(name, func(t *testing.T) {
			ns, elsewhere := kerneltest.Namespace(t), kerneltest.Namespace(t)
			var stop func()
			kerneltest.Do(t, ns, func() (err error) {
				if err := Announced(t.Context()); err != nil {
					t.Errorf("before: %v", err)
				}
				stop, err = Announce(dir)
				return err
			})
			kerneltest.Do(t, elsewhere, func() error { return Announced(t.Context()) })
			kerneltest.Do(t, ns, func() error {
				for range 3 {
					var held *HeldError
					if err := Announced(t.Context()); !errors.As(err, &held) || held.Process != strconv.Itoa(os.Getpid()) {
						t.Errorf("while it lives: %v", err)
					} else if short := strings.Trim(held.Dir, `"…`); held.Dir != dir && (short == "" || !strings.HasPrefix(dir, short)) {
						t.Errorf("its folder is %s, want %s", held.Dir, dir)
					}
				}
				return nil
			})
			stop()
			kerneltest.Do(t, ns, func() error { return Announced(t.Context()) })
		})
	}
}

// serve is Serve in a namespace, which must do as it is wanted to.
func serve(t *testing.T, ns *os.File, dir string, wantHeld string) (stop func()) {
	t.Helper()
	kerneltest.Do(t, ns, func() (err error) {
		stop, err = Serve(t.Context(), dir)
		var held *HeldError
		switch {
		case wantHeld == "":
			return err
		case !errors.As(err, &held):
			t.Errorf("%s: %v, want that %s is held", dir, err, wantHeld)
		case held.Dir != wantHeld || held.Process != strconv.Itoa(os.Getpid()):
			t.Errorf("%s: %v, want that %s is held", dir, err, wantHeld)
		}
		return nil
	})
	return stop
}

func announce(t *testing.T, ns *os.File, dir string) (stop func()) {
	t.Helper()
	kerneltest.Do(t, ns, func() (err error) {
		stop, err = Announce(dir)
		return err
	})
	return stop
}

// TestWhoServesIsAlone in its namespace; who only waits keeps nobody from it, but is one to
// cleanup.
func TestWhoServesIsAlone(t *testing.T) {
	ns, elsewhere := kerneltest.Namespace(t), kerneltest.Namespace(t)
	waits := announce(t, ns, "/run/waits")
	stop := serve(t, ns, "/run/first", "")
	known := announce(t, ns, "/run/first")
	defer serve(t, elsewhere, "/run/elsewhere", "")()
	waits() // It is the same process, here.
	serve(t, ns, "/run/second", "/run/first")()
	known()
	serve(t, ns, "/run/second", "that is not known")()
	kerneltest.Do(t, ns, func() error {
		var held *HeldError
		if err := Announced(t.Context()); !errors.As(err, &held) {
			t.Errorf("cleanup does not see who serves: %v", err)
		}
		return nil
	})
	stop()
	serve(t, ns, "/run/second", "")()
	kerneltest.Do(t, ns, func() error { return Announced(t.Context()) })
}

// TestOneOfManyServes: of those that come at the same moment one goes on.
func TestOneOfManyServes(t *testing.T) {
	ns := kerneltest.Namespace(t)
	kerneltest.Do(t, ns, func() error {
		name, stop, err := take(t.Context(), "/run/first")
		if err != nil {
			return err
		}
		defer stop()
		var held *HeldError // Before the first has looked, and leaves nothing that it would see.
		if _, err := Serve(t.Context(), "/run/second"); !errors.As(err, &held) {
			t.Errorf("the second: %v", err)
		}
		if _, _, err := take(t.Context(), "/run/third"); !errors.As(err, &held) {
			t.Errorf("the third: %v", err)
		}
		return othersServe(t.Context(), name)
	})
	const many = 8
	for round := range 10 {
		var one sync.WaitGroup
		var serving, refused atomic.Int32
		all := make(chan struct{}) // Closed once each has looked.
		var there, looked sync.WaitGroup
		there.Add(many)
		looked.Add(many)
		for i := range many {
			one.Go(func() {
				kerneltest.Do(t, ns, func() error {
					there.Done()
					there.Wait()
					stop, err := Serve(t.Context(), "/run/"+strconv.Itoa(i))
					looked.Done()
					<-all
					stop()
					var held *HeldError
					switch {
					case err == nil:
						serving.Add(1)
					case errors.As(err, &held):
						refused.Add(1)
					default:
						return err
					}
					return nil
				})
			})
		}
		looked.Wait()
		close(all)
		one.Wait()
		if serving.Load() != 1 || refused.Load() != many-1 {
			t.Fatalf("round %d: %d serve and %d are refused", round, serving.Load(), refused.Load())
		}
	}
}

// listenAs listens at a name as some user, or only binds it where the backlog is negative.
func listenAs(t *testing.T, ns *os.File, user int, backlog int, name string) {
	t.Helper()
	var fd int
	kerneltest.Do(t, ns, func() (err error) {
		runtime.LockOSThread()
		// Of this thread alone, which ends (setresuid(2), on C library and kernel).
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(user), ^uintptr(0)); errno != 0 {
			return errno
		}
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + name}); err != nil || backlog < 0 {
			return err
		}
		return unix.Listen(fd, backlog)
	})
	t.Cleanup(func() { _ = unix.Close(fd) })
}

// TestStrangersKeepNobodyFromServing, and do not make two serve either.
func TestStrangersKeepNobodyFromServing(t *testing.T) {
	for name, backlog := range map[string]int{"listens": 8, "only has the name": -1} {
		t.Run(name, func(t *testing.T) {
			ns := kerneltest.Namespace(t)
			listenAs(t, ns, 65534, backlog, serving)
			stop := serve(t, ns, "/run/first", "")
			serve(t, ns, "/run/second", "/run/first")()
			stop()
			serve(t, ns, "/run/second", "")()
		})
	}
	t.Run("of whom one is gone since", func(t *testing.T) {
		ns := kerneltest.Namespace(t)
		listenAs(t, ns, 0, 8, servingPrefix+`ABCDEFGH"/run/first"`)
		serve(t, ns, "/run/second", "/run/first")()
	})
}

// TestStrangersAreNoDaemon: a name of the kind can be taken by anybody, who is not
// believed; one who keeps a full queue is, for he may be a daemon that is stopped.
func TestStrangersAreNoDaemon(t *testing.T) {
	ns := kerneltest.Namespace(t)
	listenAs(t, ns, 65534, 8, announcePrefix+"stranger")
	kerneltest.Do(t, ns, func() error { return Announced(t.Context()) })
	listenAs(t, ns, 0, 0, announcePrefix+"full")
	kerneltest.Do(t, ns, func() error {
		conn, err := (&net.Dialer{}).DialContext(context.Background(), "unix", "@"+announcePrefix+"full")
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if err := Announced(t.Context()); !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), "ripstopd/full") {
			t.Errorf("a full queue: %v", err)
		}
		return nil
	})
}

// TestTableOfSockets: of the kernel's lines only those count that listen.
func TestTableOfSockets(t *testing.T) {
	table := `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 18446 @ripstopd/ABCDEFGH"/run/a b"
0000000000000000: 00000003 00000000 00000000 0001 03 18447 @ripstopd/ABCDEFGH"/run/a b"
0000000000000000: 00000002 00000000 00010000 0001 01 18448 /run/ @other
0000000000000000: 00000002 00000000 00010000 0001 01 18449
0000000000000000: 00000002 00000000 00010000 0001 01 18450 @ripstopd-serves
0000000000000000: 00000002 00000000 00010000 0001 01 18451 @ripstopd-serves/ABCDEFGH"/run/a"
0000000000000000: 00000002 00000000 00010000 0001 01 18452 @ripstopd-serves-not
0000000000000000: 00000002 00000000 00010000 0001 01 18453 @ripstopd
`
	if got := announcedIn([]byte(table)); len(got) != 3 || got[1] != serving || !serves(got[2]) || announcedDir(got[2]) != "/run/a" || got[0] != `ripstopd/ABCDEFGH"/run/a b"` || announcedDir(got[0]) != "/run/a b" {
		t.Errorf("got %q", got)
	}
}
