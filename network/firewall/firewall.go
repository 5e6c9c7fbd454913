package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// Firewall keeps the rules of one network namespace. Nothing is touched before
// Begin and the first Update. Its methods may be called from any goroutine; Run
// once.
type Firewall struct {
	opts Options
	log  *zap.Logger
	ns   *os.File // nil: the process's own.
	kick chan struct{}
	// port is that of the socket in use, for telling own echoes.
	port atomic.Uint32
	// listenBuffer is the size of the listener's buffer in bytes.
	listenBuffer int
	// events counts what the kernel announced.
	events atomic.Uint64
	// heard is what the listener heard since the last pass.
	heard heard

	mu      sync.Mutex
	network Network
	begun   bool
	// told is set by the first Update, careful says that peers may be missing.
	told, careful bool
	// peers counts for each address who owes it; changed are the addresses of
	// which that has changed since the last pass, and recheck says that it is all.
	peers   *addresses
	changed map[netip.Addr]struct{}
	recheck bool
	status  Status

	// turn holds a token for whoever uses the fields below.
	turn chan struct{}
	conn *conn
	// have mirrors the elements of the sets, nil if it is not known.
	have *addresses
	// room is the size of the sets, 0 where there are none.
	room uint32
	// settled says that the table was as wanted once, and planned what was wanted
	// then, but for the sets.
	settled bool
	planned []string
	fight   fight
	// succeeded says that flannel's rules are gone, as far as they are to go.
	succeeded bool
	reading   reading
	tries     int
	// blind is why others' rules could not be read when they were last to be.
	blind error
	// found is what nftables shows in the way, nil if it was not looked at; said
	// has what was told of it and of legacy iptables.
	found   []Finding
	said    map[string]bool
	counted dropped
	// forgetful says that the kernel does not take what notes strangers.
	forgetful bool
	// write is [conn.writeOwn], but for tests.
	write func(*conn, Ruleset, []netip.Addr, nftables.CounterObj) error
}

// Status is what there is to be told of the rules.
type Status struct {
	// Findings are what stands in the way of pods' traffic, sorted.
	Findings []Finding
	// Peers is how many addresses the guard lets in.
	Peers int
	// Writes counts transactions that changed something, Heals those among them
	// that undid what another hand had done; LastHeal is when the last was.
	Writes, Heals uint64
	LastHeal      time.Time
	// Dropped counts the packets that the guard dropped, Strangers are those who
	// sent them lately, the busiest first.
	Dropped   uint64
	Strangers []Stranger
	// Err is why the rules are not as wanted, nil if they are.
	Err error
}

// Open returns a Firewall for the network namespace of the process. Nothing is
// read or changed yet.
func Open(opts Options, log *zap.Logger) (*Firewall, error) { return open(nil, opts, log) }

// OpenAt is Open for the given network namespace, such as /proc/PID/ns/net. It
// duplicates the file. It takes CAP_SYS_ADMIN.
func OpenAt(ns *os.File, opts Options, log *zap.Logger) (*Firewall, error) {
	fd, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep network namespace: %w", err)
	}
	return open(os.NewFile(uintptr(fd), ns.Name()), opts, log)
}

func open(ns *os.File, opts Options, log *zap.Logger) (*Firewall, error) {
	if err := opts.Check(); err != nil {
		return nil, errors.Join(err, closeFile(ns))
	}
	f := &Firewall{
		opts: opts, log: log, ns: ns, listenBuffer: listenerBuffer, kick: make(chan struct{}, 1), turn: make(chan struct{}, 1),
		peers: newAddresses(), changed: map[netip.Addr]struct{}{}, said: map[string]bool{}, write: (*conn).writeOwn,
	}
	f.turn <- struct{}{}
	return f, nil
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// Close frees what was taken. Rules stay as they are.
func (f *Firewall) Close() error {
	<-f.turn
	defer f.give()
	f.drop()
	return closeFile(f.ns)
}

// Begin says what network the rules are for, and whether flannel's are to go once ours
// stand. It comes before the first Update, and again where something of it is another.
func (f *Firewall) Begin(ranges, own subnet.Subnets, devices subnet.PerFamily[string], at subnet.PerFamily[[]netip.Addr], vni uint32, port uint16, flannels bool) {
	f.mu.Lock()
	f.network, f.begun = Network{Ranges: ranges, Own: own, Devices: devices, At: at, VNI: vni, Port: port, Flannels: flannels}, true
	f.mu.Unlock()
	f.heard.all()
	f.wake()
}

// Update changes which addresses are peers': first it adds, then it takes back.
// An address that two owe goes with the last of them. The first Update must bring
// all that are known. It returns when the added ones may pass the guard, or the
// kernel refused or took longer than updateTime, which is tried again; what goes,
// goes a moment later.
func (f *Firewall) Update(release, owe []netip.Addr) {
	f.mu.Lock()
	first := !f.told
	f.told = true
	f.recheck = f.recheck || first // All is new, so nothing need be noted one by one.
	var ours []netip.Addr          // Of what is owed: Begin may change the network once mu is free.
	for _, a := range owe {
		if !f.has(a) {
			continue
		}
		ours = append(ours, a)
		f.peers.set(a, f.peers.count(a)+1)
		if !first {
			f.changed[a] = struct{}{}
		}
	}
	for _, a := range release {
		if !f.has(a) {
			continue
		}
		f.changed[a] = struct{}{}
		if n := f.peers.count(a); n > 0 {
			f.peers.set(a, n-1)
		}
	}
	f.status.Peers = f.peers.len()
	guarding := f.opts.Guard && f.begun && f.network.Port != 0
	f.mu.Unlock()
	defer f.wake()
	if !guarding || len(owe) == 0 && !first {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), updateTime)
	defer cancel()
	if f.take(ctx) != nil {
		return
	}
	defer f.give()
	if f.have == nil || f.crowded() {
		f.pass(ctx, false)
		return
	}
	var fresh []netip.Addr
	for _, a := range ours {
		if !f.have.has(a) {
			fresh = append(fresh, a)
		}
	}
	if len(fresh) > 0 {
		// A failure is tried again by the pass, and told there.
		_ = f.try(ctx, func(c *conn) error { return f.changePeers(c, fresh, nil) })
	}
}

// updateTime bounds how long who tells of peers waits for the guard: for a pass that
// is at work, and for a kernel that is kept busy by another's transaction.
const updateTime = 2 * time.Second

// take waits for the turn, which give hands back.
func (f *Firewall) take(ctx context.Context) error {
	select {
	case <-f.turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *Firewall) give() { f.turn <- struct{}{} }

func (f *Firewall) crowded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.peers.len() > int(f.room)
}

// SetCareful tells whether peers may be missing among those that are known. Then
// none is taken out of the guard's sets.
func (f *Firewall) SetCareful(careful bool) {
	f.mu.Lock()
	f.recheck = f.recheck || f.careful && !careful
	f.careful = careful
	f.mu.Unlock()
	f.wake()
}

// Status returns what there is to tell, with the guard's count as it is now.
func (f *Firewall) Status(ctx context.Context) Status {
	if f.take(ctx) == nil {
		f.count(ctx)
		f.give()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	s.Findings, s.Strangers = slices.Clone(s.Findings), slices.Clone(s.Strangers)
	return s
}

// Find names what [Firewall.Remove] would take away, a line for each. A kernel
// without nftables has nothing of ours.
func (f *Firewall) Find(ctx context.Context) (ours []string, err error) {
	if err := f.take(ctx); err != nil {
		return nil, err
	}
	defer f.give()
	err = f.with(ctx, func(c *conn) error {
		o, err := c.readOwn()
		if err != nil {
			return err
		}
		if o.exists {
			ours = append(ours, "nftables table inet "+TableName)
		}
		others, err := c.readOthers(mostChains)
		if err != nil {
			return err
		}
		for _, change := range planMends(others, Network{}, false) {
			ours = append(ours, fmt.Sprintf("rule in table %s, chain %s: %s", change.chain.table, change.chain.name, change.text))
		}
		return nil
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	return ours, err
}

// Remove takes away all that is ours: the table, and the rules among iptables'.
// It is not to be called while Run is at work.
func (f *Firewall) Remove(ctx context.Context) error {
	if err := f.take(ctx); err != nil {
		return err
	}
	defer f.give()
	f.have, f.settled = nil, false
	return f.with(ctx, func(c *conn) error {
		return errors.Join(c.deleteOwn(), c.unmend())
	})
}

func (f *Firewall) networkNow() Network {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.network
}

// has tells whether an address is of a family in use. It is for the holder of mu.
func (f *Firewall) has(a netip.Addr) bool {
	return a.IsValid() && f.network.Ranges[subnet.FamilyOf(a)].IsValid()
}

func (f *Firewall) wake() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// with calls fn with a socket. After an error the socket is closed.
func (f *Firewall) with(ctx context.Context, fn func(*conn) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if f.conn == nil {
		c, err := dial(f.ns)
		if err != nil {
			return explain(err)
		}
		f.conn = c
		f.port.Store(c.port)
	}
	stop := f.conn.limit(ctx)
	err := fn(f.conn)
	stop()
	if err != nil {
		f.drop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return err
}

func (f *Firewall) drop() {
	if f.conn != nil {
		f.conn.close()
		f.conn = nil
	}
}

// try is with for work on our table: after an error nothing is known of it.
func (f *Firewall) try(ctx context.Context, fn func(*conn) error) error {
	err := f.with(ctx, fn)
	if err != nil {
		f.have = nil
		f.heard.all()
	}
	return err
}

// note changes the status.
func (f *Firewall) note(change func(*Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.status)
}
