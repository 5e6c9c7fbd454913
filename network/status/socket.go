package status

import (
	"fmt"
	"os"
	"path/filepath"
)

// SocketName is the file in --run-dir at which a daemon answers.
const SocketName = "ripstopd.sock"

// longestSocket is what struct sockaddr_un has room for, less the closing zero.
const longestSocket = 107

// SocketPath hands to use the address of a socket in a folder. A path that is
// too long for an address goes by way of the folder's own descriptor.
func SocketPath(dir, name string, use func(address string) error) error {
	path := filepath.Join(dir, name)
	if len(path) <= longestSocket {
		return use(path)
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return use(fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name))
}
