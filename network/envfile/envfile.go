// Package envfile writes and reads subnet.env, the file by which CNI plugins
// and Docker learn the node's subnet. Its form is flannel's.
package envfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// Env is what the file says.
type Env struct {
	// Networks and Subnets are set for the families in use.
	Networks subnet.PerFamily[netip.Prefix]
	Subnets  subnet.Subnets
	// MTU is that of the pods, in bytes.
	MTU int
	// IPMasq tells whether the daemon masquerades what leaves the cluster.
	IPMasq bool
}

var keys = subnet.PerFamily[struct{ network, subnet string }]{
	{"FLANNEL_NETWORK", "FLANNEL_SUBNET"},
	{"FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"},
}

// Bytes returns the file's text. The subnet is given as its first usable
// address, which is the bridge's or Docker's.
func (e Env) Bytes() []byte {
	var b bytes.Buffer
	for _, f := range subnet.Families {
		if s := e.Subnets[f]; s.IsValid() {
			first := netip.PrefixFrom(s.Addr().Next(), s.Bits())
			fmt.Fprintf(&b, "%s=%s\n%s=%s\n", keys[f].network, e.Networks[f], keys[f].subnet, first)
		}
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", e.MTU, e.IPMasq)
	return b.Bytes()
}

// maxSize bounds what is read of a file, in bytes. One of ours has 200 or so.
const maxSize = 64 << 10

// read reads a file and waits for nobody: where another hand has put a pipe or a
// device in its place, opening it, or reading to its end, could take for ever. A
// device is not even opened, for that may do something, unless it comes in between.
func read(path string) ([]byte, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	switch info, err := f.Stat(); {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(text) > maxSize {
		err = fmt.Errorf("%s has more than %d bytes", path, maxSize)
	}
	return text, err
}

// Write puts the file in place whole, readable by all, and makes its folder
// where that is missing. A file that says the same already is left alone, so
// that those who watch it are not woken.
func (e Env) Write(path string) error {
	text := e.Bytes()
	if old, err := read(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	for again := true; ; again = false {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make the folder of the subnet file: %w", err)
		}
		err := renameio.WriteFile(path, text, 0o644, renameio.IgnoreUmask())
		if again && errors.Is(err, fs.ErrNotExist) {
			continue // Whoever deleted the file went on with its folder meanwhile.
		}
		if err != nil {
			return fmt.Errorf("write the subnet file: %w", err)
		}
		return nil
	}
}

// Read reads a file, flannel's or ours. A file that is not there gives the zero
// Env and no error. Lines that it does not know are passed over. What is no file, or
// too large for one of these, is an error at once.
func Read(path string) (Env, error) {
	text, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Env{}, nil
	}
	if err != nil {
		return Env{}, fmt.Errorf("read the subnet file: %w", err)
	}
	e, err := Parse(text)
	if err != nil {
		return Env{}, fmt.Errorf("read the subnet file %s: %w", path, err)
	}
	return e, nil
}

// Parse reads the file's text. Errors name the line's key.
func Parse(text []byte) (Env, error) {
	var e Env
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		key, value, _ := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		var err error
		switch key {
		case "FLANNEL_MTU":
			e.MTU, err = strconv.Atoi(value)
		case "FLANNEL_IPMASQ":
			e.IPMasq, err = strconv.ParseBool(value)
		default:
			err = e.parsePrefix(key, value)
		}
		if err != nil {
			return Env{}, fmt.Errorf("%s: %w", key, err)
		}
	}
	return e, lines.Err()
}

func (e *Env) parsePrefix(key, value string) error {
	for _, f := range subnet.Families {
		if key != keys[f].network && key != keys[f].subnet {
			continue
		}
		p, err := netip.ParsePrefix(value)
		if err != nil {
			return err
		}
		if subnet.FamilyOf(p.Addr()) != f {
			return fmt.Errorf("%s is not %s", p, f)
		}
		if key == keys[f].network {
			e.Networks[f] = p.Masked()
		} else {
			e.Subnets[f] = p.Masked()
		}
	}
	return nil
}
