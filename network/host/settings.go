package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Settings are the host's, as numbers under names such as "ipv4/ip_forward".
type Settings interface {
	// Get reads one. One that there is not is [fs.ErrNotExist].
	Get(key string) (int, error)
	// Set writes one.
	Set(key string, value int) error
	// Writable tells why one cannot be written, and changes nothing.
	Writable(key string) error
}

// Proc are the settings of the calling process's network namespace.
type Proc struct{}

const procRoot = "/proc/sys/net"

// Get implements Settings.
func (Proc) Get(key string) (int, error) {
	text, err := os.ReadFile(filepath.Join(procRoot, key))
	if err != nil {
		return 0, err
	}
	value, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name(key), err)
	}
	return value, nil
}

// Set implements Settings.
func (Proc) Set(key string, value int) error {
	return write(key, strconv.Itoa(value))
}

// Writable implements Settings. To open a setting for writing is harmless, and
// tells more than its mode does.
func (Proc) Writable(key string) error { return write(key, "") }

func write(key, text string) error {
	f, err := os.OpenFile(filepath.Join(procRoot, key), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if text != "" {
		_, err = f.WriteString(text)
	}
	return errors.Join(err, f.Close())
}

// readOnly tells whether an error says that /proc/sys is not for this process to
// write.
func readOnly(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)
}

// setting is what one is to be.
type setting struct {
	key   string
	value int
	// link is that of which the routers go on to be heard by it, "" for none.
	link string
}

// String is an argument of sysctl -w.
func (s setting) String() string { return fmt.Sprintf("%s=%d", name(s.key), s.value) }

// name is that of sysctl. Where an interface's name has a dot in it, sysctl takes
// slashes.
func name(key string) string {
	key = "net/" + key
	if strings.Contains(key, ".") {
		return key
	}
	return strings.ReplaceAll(key, "/", ".")
}
