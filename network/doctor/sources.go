package doctor

import (
	"context"
	"net/netip"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// Daemon is the daemon of this host, as far as it answers.
type Daemon interface {
	Status(ctx context.Context) (status.Status, error)
	// Process is the number of its process, whether it answers or not; 0 where that
	// cannot be seen from here.
	Process(ctx context.Context) (int, error)
}

// Store is the network's.
type Store interface {
	List(ctx context.Context) (subnet.Listing, error)
	// Alive tells which of the nodes of those names give signs of life.
	Alive(ctx context.Context, nodes []string) (map[string]bool, error)
	// Servers looks at each of the store's servers, whether they can be read or not.
	Servers(ctx context.Context) []Server
}

// Server is one server of the store.
type Server struct {
	URL string
	// Problem says why it does not serve, "" if it does.
	Problem string
	// Behind is by how much its clock is behind this host's, to about a second; Dated
	// tells that it is known.
	Behind time.Duration
	Dated  bool
	// Certificate is the server's, the zero value where it has none.
	Certificate Certificate
}

// Certificate is how long one is good.
type Certificate struct {
	// Of names the file or the server.
	Of         string
	From, Till time.Time
}

// Kernel is what the kernel has of ours. It changes nothing.
type Kernel interface {
	Dump(ctx context.Context) (*backend.State, error)
	// Segments tells of the host's links how large packets may be that the kernel
	// hands to them in one piece.
	Segments(ctx context.Context) ([]backend.Segments, error)
	// Links lists the host's own, Advertised those with an IPv6 default route from a
	// router's advertisement.
	Links(ctx context.Context) ([]backend.Link, error)
	Advertised(ctx context.Context) ([]string, error)
}

// Host is what else there is to be known of the host.
type Host interface {
	Preflight(ctx context.Context) error
	CanTunnel(ctx context.Context) error
	Interfaces(ctx context.Context) ([]backend.Interface, error)
	Survey(ctx context.Context, networks []netip.Prefix) (backend.Survey, error)
}

// Firewall is the host's packet filter.
type Firewall interface {
	// Examine reads it. Peers are the addresses that the guard is to let in.
	Examine(ctx context.Context, n Filtered, peers []netip.Addr) (Rules, error)
}

// Filtered is the network that rules speak of.
type Filtered struct {
	Ranges, Own subnet.Subnets
	Devices     subnet.PerFamily[string]
	// At are this host's addresses at which peers send to it.
	At   subnet.PerFamily[[]netip.Addr]
	VNI  uint32
	Port uint16
	// EchoPort is where peers are answered, by this node's record.
	EchoPort uint16
	// Guard and Masquerade tell what the daemon is to keep.
	Guard, Masquerade bool
}

// Rules are what the packet filter has.
type Rules struct {
	// Lacking says that the kernel has no nftables.
	Lacking bool
	// There tells that our table is; Wrong has what of it is not as it should be.
	There bool
	Wrong []string
	// Shut are peers whose packets the guard drops, the first of them; ShutAll is how
	// many there are.
	Shut    []netip.Addr
	ShutAll int
	// Dropped counts what the guard dropped, Strangers are by whom it was sent lately.
	Dropped   uint64
	Strangers []status.Stranger
	// Findings are others' rules that drop pods' traffic.
	Findings []status.Rule
}

// Settings reads the host's settings by names such as "ipv4/ip_forward".
type Settings interface {
	Get(key string) (int, error)
	// Tracking counts what the table of connections could not take; an error where the
	// kernel does not tell.
	Tracking() (host.Tracking, error)
}

// Saved is what a node has saved of the store.
type Saved struct {
	Node   string
	Config []byte
	Lease  subnet.Lease
	// Written is when, Expires until when the store keeps the lease.
	Written, Expires time.Time
	Epoch            string
	Revision         int64
	Peers            subnet.SavedPeers
}

// Setup is how the daemon of the node is set up, as far as is known, and where its
// files are.
type Setup struct {
	// Node is its name, "" for not known.
	Node               string
	SubnetFile, RunDir string
	// ConfDir and BinDir are where CNI's files are looked for.
	ConfDir, BinDir string
	// Plugin is the CNI plugin that came with this program, "" for not there.
	Plugin     string
	TxChecksum host.TxChecksum
	Guard      bool
	// Certificates are those that are shown to the store.
	Certificates []Certificate
	// Prefix is the store's, under which records lie.
	Prefix string
	// StoreFlags are those by which ripstop reaches the store, where they are not the
	// defaults; without a password.
	StoreFlags []string
	// Program is the path by which this program was called.
	Program string
	// Release is the running kernel's.
	Release string
}

// Sources are where facts come from. None is nil, but Store where it is not known
// where the store is.
type Sources struct {
	Setup    Setup
	Daemon   Daemon
	Store    Store
	Saved    func() (*Saved, error)
	Kernel   Kernel
	Host     Host
	Firewall Firewall
	Settings Settings
}
