package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/google/renameio/v2"
)

// Mark is the path of a file that says that the host was made to forward IPv6 in this
// boot. A daemon that finds the host forwarding would not know else whether that is
// the operator's will.
type Mark string

// bootID is the kernel's name of this boot.
const bootID = "/proc/sys/kernel/random/boot_id"

// There tells whether the mark was made in this boot.
func (m Mark) There() (bool, error) {
	text, err := os.ReadFile(string(m))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the mark of forwarding: %w", err)
	}
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return false, fmt.Errorf("read the boot's name: %w", err)
	}
	return strings.TrimSpace(string(text)) == strings.TrimSpace(string(boot)), nil
}

// Make makes the mark.
func (m Mark) Make() error {
	boot, err := os.ReadFile(bootID)
	if err == nil {
		err = renameio.WriteFile(string(m), boot, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the mark of forwarding: %w", err)
	}
	return nil
}
