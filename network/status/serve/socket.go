package serve

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/ripstop-net/ripstop/network/status"
)

// socket is a listener on a Unix socket that only its owner may connect to.
type socket struct {
	net.Listener
	path string
}

// listenSocket makes the socket in a folder of its own that nobody else may
// enter, and moves it into place when its rights are set: at no time can another
// user connect, whatever the umask. What stood in its place is a dead daemon's.
func listenSocket(dir string) (s *socket, err error) {
	fail := func(err error) (*socket, error) {
		return nil, fmt.Errorf("make the status socket in the run folder (--run-dir): %w", err)
	}
	apart, err := os.MkdirTemp(dir, ".socket-")
	if err != nil {
		return fail(err)
	}
	defer func() { _ = os.RemoveAll(apart) }()
	s = &socket{path: filepath.Join(dir, status.SocketName)}
	err = status.SocketPath(apart, status.SocketName, func(address string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
		if err == nil {
			l.SetUnlinkOnClose(false) // By then it has another name.
			s.Listener = l
		}
		return err
	})
	if err != nil {
		return fail(err)
	}
	made := filepath.Join(apart, status.SocketName)
	if err = os.Chmod(made, 0o600); err == nil {
		err = os.Rename(made, s.path)
	}
	if err != nil {
		return fail(errors.Join(err, s.Listener.Close()))
	}
	return s, nil
}

// Close stops listening and takes the socket away.
func (s *socket) Close() error {
	err := s.Listener.Close()
	if gone := os.Remove(s.path); gone != nil && !errors.Is(gone, os.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}
