package rundir

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The lock keeps daemons of one folder apart. What they make on a host is there once
// for a network namespace, however, and so a daemon makes itself known there too: by
// sockets with abstract names (unix(7)), which belong to the namespace, whatever
// files and processes the one who looks can see, and end with their process.
//
// Anybody may take an abstract name. So each daemon has one of its own, that nobody can
// take first, and who looks asks the kernel whose process listens there: one that is
// not root's, or the asker's own, is no daemon.
const announcePrefix = "ripstopd/"

// serving is the name that a daemon takes before it touches anything. The kernel gives it
// to one alone, and so of two that come at the same moment one goes on. Where it is a
// stranger's, a daemon takes one of its own that begins with servingPrefix; two at the
// same moment may then both give way, and are started again.
const (
	serving       = "ripstopd-serves"
	servingPrefix = serving + "/"
)

// longestName is what struct sockaddr_un has room for, less the leading zero.
const longestName = 107

// Announce makes a daemon with a run folder known in the network namespace until stop
// is called. It may be one that waits and touches nothing.
func Announce(dir string) (stop func(), err error) {
	return listen(ownName(announcePrefix, dir))
}

// Serve makes a daemon known in the network namespace of the calling thread as the one
// that serves there, until stop is called, which is never nil. Where another one serves,
// it is not made known, and the error is a [*HeldError]; one that is only announced keeps
// nobody from it. With any other error another one may serve, or this one may not be known.
func Serve(ctx context.Context, dir string) (stop func(), err error) {
	name, stop, err := take(ctx, dir)
	if err != nil {
		return func() {}, err
	}
	// It is known by now: of two that look, one sees the other at least.
	err = othersServe(ctx, name)
	var held *HeldError
	if errors.As(err, &held) {
		stop()
		stop = func() {}
	}
	return stop, err
}

// take takes the name of who serves, or one of its own, if no other daemon has the former.
func take(ctx context.Context, dir string) (name string, stop func(), err error) {
	name = serving
	for end := time.Now().Add(answerTime); ; {
		if stop, err = listen(name); !errors.Is(err, unix.EADDRINUSE) {
			return name, stop, err
		}
		// A name of its own would make the one that came first give way too: this one looks
		// before it takes that. The first may have bound the name and not listen yet.
		process, err := ask(ctx, name)
		if err == nil && process != 0 {
			return "", nil, heldBy(ctx, name, process)
		}
		if !errors.Is(err, unix.ECONNREFUSED) || time.Now().After(end) {
			name = ownName(servingPrefix, dir)
			continue
		}
		if err := pause(ctx, answerTime/100); err != nil {
			return "", nil, err
		}
	}
}

// othersServe is [Announced] of who serves by another name.
func othersServe(ctx context.Context, but string) error {
	return announced(ctx, func(name string) bool { return serves(name) && name != but })
}

// serves tells the name of a daemon that serves from that of one that may only wait.
func serves(name string) bool { return name == serving || strings.HasPrefix(name, servingPrefix) }

// ownName is a name that nobody can foresee, with as much of the folder as there is room for.
func ownName(prefix, dir string) string {
	if whole, err := filepath.Abs(dir); err == nil {
		dir = whole
	}
	name := prefix + rand.Text()[:8] + strconv.Quote(dir)
	return name[:min(len(name), longestName)]
}

// listen takes an abstract name until stop is called.
func listen(name string) (stop func(), err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@" + name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make this daemon known in the network namespace: %w", err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_ = conn.Close() // That there is an answer is all of it.
			}
		}
	})
	return func() { _ = l.Close(); accepting.Wait() }, nil
}

// Announced returns nil where no daemon lives in the network namespace of the calling
// thread, and a [*HeldError] of one that does, whether it serves or waits. One that was
// stopped (SIGSTOP) lives.
func Announced(ctx context.Context) error {
	return announced(ctx, func(string) bool { return true })
}

// announced is Announced for the names that count.
func announced(ctx context.Context, counts func(name string) bool) error {
	names, err := announcedNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		if !counts(name) {
			continue
		}
		process, err := listener(ctx, name)
		switch {
		case err != nil:
			return fmt.Errorf("ask for the process that is known as a ripstopd in this network namespace (ss -xlp shows @%s): %w", name, err)
		case process != 0:
			return heldBy(ctx, name, process)
		}
	}
	return nil
}

// heldBy says that a process, which listens at a name, is a daemon. Where the name has no
// folder, it is that of another name of the same process.
func heldBy(ctx context.Context, name string, process int) *HeldError {
	held := &HeldError{Dir: "that is not known", Process: strconv.Itoa(process)}
	if process < 0 {
		held.Process = "of another container"
	}
	if name != serving {
		held.Dir = announcedDir(name)
		return held
	}
	names, _ := announcedNames() // The folder is only for the message.
	for _, other := range names {
		if other == serving {
			continue
		}
		if p, err := listener(ctx, other); err == nil && p == process {
			held.Dir = announcedDir(other)
			break
		}
	}
	return held
}

// announcedNames are those at which daemons, or strangers, listen.
func announcedNames() ([]string, error) {
	table, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("look for daemons in the network namespace: %w", err)
	}
	return announcedIn(table), nil
}

// announcedIn lists the names in a table of the kernel's (unix_seq_show). Of sockets that
// do not listen, which are those of who asks, there may be some with the same.
func announcedIn(table []byte) (names []string) {
	const listening = "00010000" // __SO_ACCEPTCON, in the column of flags.
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		row, name, ok := strings.Cut(lines.Text(), " @")
		if !ok || !strings.HasPrefix(name, announcePrefix) && !serves(name) {
			continue
		}
		if fields := strings.Fields(row); len(fields) > 3 && fields[3] == listening {
			names = append(names, name)
		}
	}
	return names
}

// announcedDir is the folder in a name, as far as there was room for it.
func announcedDir(name string) string {
	_, quoted, _ := strings.Cut(name, `"`)
	if dir, err := strconv.Unquote(`"` + quoted); err == nil {
		return dir
	}
	return `"` + quoted + "…"
}

// answerTime bounds the wait for a socket whose queue is full. connect(2) does not wait
// for the process.
const answerTime = time.Second

// listener is the number of the process that listens at a name, 0 if that is no daemon's
// or gone. It is -1 where the number means nothing here, as for a process in another
// container.
func listener(ctx context.Context, name string) (process int, err error) {
	process, err = ask(ctx, name)
	if errors.Is(err, unix.ECONNREFUSED) {
		return 0, nil
	}
	return process, err
}

// ask is listener with an error where nobody listens.
func ask(ctx context.Context, name string) (process int, err error) {
	for end := time.Now().Add(answerTime); ; {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", "@"+name)
		switch {
		case err == nil:
			defer func() { _ = conn.Close() }()
			return Owner(conn.(*net.UnixConn))
		case !errors.Is(err, unix.EAGAIN) || time.Now().After(end):
			return 0, err
		}
		if err := pause(ctx, answerTime/20); err != nil {
			return 0, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	again := time.NewTimer(d)
	defer again.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-again.C:
		return nil
	}
}

// Owner asks the kernel for the number of the process that listens at the other end
// (SO_PEERCRED); 0 if it is neither root's nor the asker's own, -1 where the number means
// nothing here.
func Owner(conn *net.UnixConn) (process int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var who *unix.Ucred
	if err := errors.Join(raw.Control(func(fd uintptr) {
		who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}), err); err != nil {
		return 0, err
	}
	if who.Uid != 0 && int(who.Uid) != os.Geteuid() {
		return 0, nil
	}
	return cmp.Or(int(who.Pid), -1), nil
}
