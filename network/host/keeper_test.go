package host

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeHost are settings and links in memory. Settings change as the kernel's do.
type fakeHost struct {
	mu       sync.Mutex
	values   map[string]int
	readOnly map[string]bool // "" for all.
	written  []string
	// advertised are links with a router's route, which a host that forwards loses
	// where it does not hear routers.
	advertised []string
	links      []backend.Link
	changed    func()
}

func (h *fakeHost) Get(key string) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.values[key]
	if !ok {
		return 0, fs.ErrNotExist
	}
	return v, nil
}

func (h *fakeHost) Set(key string, value int) error {
	if err := h.Writable(key); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.values[key] = value
	h.written = append(h.written, setting{key: key, value: value}.String())
	if key == forwardingKey[subnet.V6] && value != 0 {
		h.advertised = slices.DeleteFunc(h.advertised, func(link string) bool { return h.values[acceptRA(link)] != heedsAlways })
	}
	if h.changed != nil {
		h.changed()
	}
	return nil
}

func (h *fakeHost) Writable(key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readOnly[""] || h.readOnly[key] {
		return &fs.PathError{Op: "open", Path: key, Err: unix.EROFS}
	}
	return nil
}

func (h *fakeHost) Links(context.Context) ([]backend.Link, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.links), nil
}

func (h *fakeHost) Forward(_ context.Context, link string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.links {
		if h.links[i].Name == link {
			h.links[i].NoForwarding = false
		}
	}
	return nil
}

func (h *fakeHost) Advertised(context.Context) ([]string, error) {
	return slices.Clone(h.advertised), nil
}

// still makes these the host's links, which do not forward.
func (h *fakeHost) still(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.links = nil
	for _, n := range names {
		h.links = append(h.links, backend.Link{Name: n, NoForwarding: true})
	}
}

// comes gives the host a link with settings of its own, and announces it.
func (h *fakeHost) comes(l backend.Link, acceptsRA int) {
	h.mu.Lock()
	h.links = append(h.links, l)
	h.values[acceptRA(l.Name)] = acceptsRA
	h.mu.Unlock()
	h.changed()
}

func (h *fakeHost) WatchSettings(ctx context.Context, changed func()) error {
	h.mu.Lock()
	h.changed = changed
	h.mu.Unlock()
	changed()
	<-ctx.Done()
	return nil
}

// usual is a host that does not forward.
func usual() *fakeHost {
	return &fakeHost{readOnly: map[string]bool{}, values: map[string]int{
		"ipv4/ip_forward": 0, "ipv6/conf/all/forwarding": 0, "ipv6/conf/eth0/accept_ra": 1, "ipv6/conf/eth1/accept_ra": 1, "ipv6/conf/eth2/accept_ra": 0,
	}}
}

func both() Needs {
	return Needs{
		Families: subnet.Families[:], Underlay: subnet.PerFamily[string]{"eth0", "eth0"},
		Networks: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:10:5::/48")},
	}
}

// keeperOf makes a keeper of a host that no keeper saw to before.
func keeperOf(t *testing.T, h *fakeHost, log *zap.Logger) *Keeper {
	return NewKeeper(h, h, Mark(filepath.Join(t.TempDir(), "mark")), log)
}

func TestKeeperSets(t *testing.T) {
	for what, c := range map[string]struct {
		host    func(*fakeHost)
		needs   func(*Needs)
		refused []string // What the check says.
		written []string
	}{
		"all of it": {written: []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.eth0.accept_ra=2", "net.ipv6.conf.all.forwarding=1"}},
		"IPv4 alone": {
			needs:   func(n *Needs) { n.Families = []subnet.Family{subnet.V4} },
			written: []string{"net.ipv4.ip_forward=1"},
		},
		"forwards already": {host: func(h *fakeHost) { h.values["ipv4/ip_forward"], h.values["ipv6/conf/all/forwarding"] = 1, 1 }},
		"a router elsewhere": {
			host:    func(h *fakeHost) { h.advertised = []string{"eth1"} },
			written: []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.eth0.accept_ra=2", "net.ipv6.conf.eth1.accept_ra=2", "net.ipv6.conf.all.forwarding=1"},
		},
		"another NIC, which may hear a router later": {
			host:    func(h *fakeHost) { h.links = []backend.Link{{Name: "eth0"}, {Name: "eth1"}, {Name: "eth2"}} },
			written: []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.eth0.accept_ra=2", "net.ipv6.conf.eth1.accept_ra=2", "net.ipv6.conf.all.forwarding=1"},
		},
		"no routers heard": {
			needs:   func(n *Needs) { n.Underlay[subnet.V6] = "eth2" },
			written: []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"},
		},
		"read-only, forwards": {host: func(h *fakeHost) {
			h.values["ipv4/ip_forward"], h.values["ipv6/conf/all/forwarding"], h.readOnly[""] = 1, 1, true
		}},
		"read-only": {
			host:    func(h *fakeHost) { h.readOnly[""] = true },
			refused: []string{"read-only", "sysctl -w net.ipv6.conf.eth0.accept_ra=2 net.ipv6.conf.all.forwarding=1"},
		},
		"accept_ra is read-only": {
			host:    func(h *fakeHost) { h.readOnly["ipv6/conf/eth0/accept_ra"] = true },
			refused: []string{"sysctl -w net.ipv6.conf.eth0.accept_ra=2 net.ipv6.conf.all.forwarding=1"},
		},
		"a name with a dot": {
			needs:   func(n *Needs) { n.Underlay[subnet.V6] = "eth0.5" },
			host:    func(h *fakeHost) { h.readOnly[""], h.values["ipv6/conf/eth0.5/accept_ra"] = true, 1 },
			refused: []string{"sysctl -w net/ipv6/conf/eth0.5/accept_ra=2"},
		},
		"no IPv6": {
			host: func(h *fakeHost) {
				maps.DeleteFunc(h.values, func(k string, _ int) bool { return strings.HasPrefix(k, "ipv6") })
			},
			refused: []string{"module ipv6"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			h, n := usual(), both()
			if c.host != nil {
				c.host(h)
			}
			if c.needs != nil {
				c.needs(&n)
			}
			routes := slices.Clone(h.advertised)
			k := keeperOf(t, h, zap.NewNop())
			_, err := k.Check(t.Context(), n)
			if len(h.written) > 0 {
				t.Fatalf("the check has written %v", h.written)
			}
			if (len(c.refused) > 0) != errors.Is(err, ErrSetting) || len(c.refused) == 0 && err != nil {
				t.Fatalf("check: %v", err)
			}
			for _, text := range c.refused {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not say %q", err, text)
				}
			}
			if err != nil {
				return
			}
			for range 2 { // The second time there is nothing to do.
				if err := k.Set(t.Context()); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(h.written, c.written) {
					t.Errorf("written are %q, want %q", h.written, c.written)
				}
			}
			if !slices.Equal(h.advertised, routes) {
				t.Errorf("of the routers' routes by %v are left %v", routes, h.advertised)
			}
		})
	}
}

// Where accept_ra cannot be set after all, the host is not made to forward.
func TestForwardingIsNotTurnedOnWithoutRouters(t *testing.T) {
	h := usual()
	k := keeperOf(t, h, zap.NewNop())
	if _, err := k.Check(t.Context(), both()); err != nil {
		t.Fatal(err)
	}
	h.readOnly["ipv6/conf/eth0/accept_ra"] = true
	if err := k.Set(t.Context()); !errors.Is(err, ErrSetting) || !strings.Contains(err.Error(), "sysctl -w net.ipv6.conf.eth0.accept_ra=2") {
		t.Errorf("set: %v", err)
	}
	if h.values["ipv6/conf/all/forwarding"] != 0 {
		t.Error("the host forwards and does not hear its router")
	}
}

// Of IPv4 each link's own setting is what counts, and that can be set where
// /proc/sys is read-only.
func TestReadOnlyIPv4(t *testing.T) {
	h := usual()
	h.still("eth0", "cni0")
	h.readOnly[""] = true
	core, logs := observer.New(zap.InfoLevel)
	k := keeperOf(t, h, zap.New(core))
	if _, err := k.Check(t.Context(), Needs{Families: []subnet.Family{subnet.V4}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := k.Set(t.Context()); err != nil || slices.ContainsFunc(h.links, func(l backend.Link) bool { return l.NoForwarding }) {
			t.Errorf("not all forward of %+v: %v", h.links, err)
		}
		h.still("veth1") // A pod has come.
	}
	if logs.Len() != 1 {
		t.Errorf("%d lines, want 1", logs.Len())
	}
}

func TestStrictFilterIsNamed(t *testing.T) {
	for what, c := range map[string]struct {
		all, own int
		direct   bool
		says     string
	}{
		"off":               {0, 0, true, ""},
		"strict for all":    {1, 0, true, "sysctl -w net.ipv4.conf.eth0.rp_filter=2"},
		"strict for it":     {0, 1, true, "sysctl -w net.ipv4.conf.eth0.rp_filter=2"},
		"loose for it":      {1, 2, true, ""},
		"no direct routes":  {1, 1, false, ""},
		"loose for all":     {2, 1, true, ""},
		"there is no scope": {-1, -1, true, ""},
	} {
		h, n := usual(), both()
		if c.all >= 0 {
			h.values["ipv4/conf/all/rp_filter"], h.values["ipv4/conf/eth0/rp_filter"] = c.all, c.own
		}
		n.Direct = c.direct
		notes, err := keeperOf(t, h, zap.NewNop()).Check(t.Context(), n)
		if got := strings.Join(notes, "; "); err != nil || (c.says == "") != (got == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want it to say %q: %v", what, got, c.says, err)
		}
	}
}

// What a hand changes is put back, and a hand that goes on is named and fought
// ever less often.
func TestKeeperPutsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := usual()
		core, logs := observer.New(zap.WarnLevel)
		k := keeperOf(t, h, zap.New(core))
		if _, err := k.Check(t.Context(), both()); err != nil {
			t.Fatal(err)
		}
		if err := k.Set(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Keep(ctx) }()
		synctest.Wait()
		hand := func(key string, announced bool) {
			h.mu.Lock()
			h.values[key] = map[bool]int{true: 0, false: 1}[announced]
			h.mu.Unlock()
			if announced {
				h.changed()
			}
		}
		value := func(key string) int { v, _ := h.Get(key); return v }
		time.Sleep(k.rest)
		for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			hand(key, true)
			began := time.Now()
			for value(key) != 1 && time.Since(began) < time.Second {
				time.Sleep(time.Millisecond)
			}
			if took := time.Since(began); took > 2*k.rest {
				t.Errorf("%s was put back after %s", key, took)
			}
		}
		hand("ipv6/conf/eth0/accept_ra", false) // The kernel does not announce it.
		time.Sleep(checkEvery + time.Second)
		if got := value("ipv6/conf/eth0/accept_ra"); got != heedsAlways {
			t.Errorf("accept_ra is %d", got)
		}
		h.mu.Lock()
		before := len(h.written)
		h.mu.Unlock()
		for range 600 { // For a minute.
			hand("ipv4/ip_forward", true)
			time.Sleep(100 * time.Millisecond)
		}
		h.mu.Lock()
		if times := len(h.written) - before; times < 10 || times > 25 {
			t.Errorf("put back %d times in a minute", times)
		}
		h.mu.Unlock()
		if n := logs.Len(); n > 10 {
			t.Errorf("%d lines: %v", n, logs.All())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// running is a keeper at work, until end.
func running(t *testing.T, h *fakeHost, k *Keeper) (end func()) {
	t.Helper()
	if _, err := k.Check(t.Context(), both()); err != nil {
		t.Fatal(err)
	}
	if err := k.Set(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Keep(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestRoutersOfLinksThatComeAreHeard where the host forwards for our sake, by this
// daemon or one before it; where it forwarded before, or pods hang on the link, they are
// not.
func TestRoutersOfLinksThatComeAreHeard(t *testing.T) {
	host, pods := netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("fd00:10:5:7::1")
	for what, c := range map[string]struct {
		link      backend.Link
		accepts   int
		other     bool // Another hand made the host forward.
		restarted bool
		want      int
		gets      netip.Addr // It gets this one then, and
		then      int        // is to have this.
	}{
		"a NIC":                         {link: backend.Link{Name: "eth5"}, accepts: 1, want: 2},
		"a NIC that hears none":         {link: backend.Link{Name: "eth5"}, accepts: 0, want: 0},
		"a VLAN":                        {link: backend.Link{Name: "eth0.5", Kind: "vlan"}, accepts: 1, want: 2},
		"a part of a bond":              {link: backend.Link{Name: "eth5", Port: true}, accepts: 1, want: 1},
		"a NIC, after a restart":        {link: backend.Link{Name: "eth5"}, accepts: 1, restarted: true, want: 2},
		"a NIC of a router":             {link: backend.Link{Name: "eth5"}, accepts: 1, other: true, want: 1},
		"a NIC of a router, restarted":  {link: backend.Link{Name: "eth5"}, accepts: 1, other: true, restarted: true, want: 1},
		"a pod's":                       {link: backend.Link{Name: "veth5", Kind: "veth"}, accepts: 1, want: 1},
		"a pod's, with its gateway":     {link: backend.Link{Name: "veth5", Kind: "veth", Addresses: []netip.Addr{pods}}, accepts: 1, want: 1},
		"a container's NIC":             {link: backend.Link{Name: "eth5", Kind: "veth", Addresses: []netip.Addr{host}}, accepts: 1, want: 2},
		"a bridge that gets an address": {link: backend.Link{Name: "br0", Kind: "bridge"}, accepts: 1, want: 1, gets: host, then: 2},
		"a bridge of pods":              {link: backend.Link{Name: "br0", Kind: "bridge"}, accepts: 1, want: 1, gets: pods, then: 1},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := usual()
				if c.other {
					h.values[forwardingKey[subnet.V4]], h.values[forwardingKey[subnet.V6]] = 1, 1
				}
				core, logs := observer.New(zap.InfoLevel)
				k := keeperOf(t, h, zap.New(core))
				end := running(t, h, k)
				if c.restarted {
					end()
					k = NewKeeper(h, h, k.mark, zap.New(core))
					end = running(t, h, k)
				}
				defer end()
				time.Sleep(k.rest)
				is := func(want int) {
					t.Helper()
					time.Sleep(2 * k.rest)
					if v, _ := h.Get(acceptRA(c.link.Name)); v != want {
						t.Errorf("accept_ra is %d, want %d", v, want)
					}
				}
				before := logs.Len()
				h.comes(c.link, c.accepts)
				is(c.want)
				if c.gets.IsValid() {
					h.mu.Lock()
					h.links[len(h.links)-1].Addresses = []netip.Addr{c.gets}
					h.mu.Unlock()
					h.changed()
					is(c.then)
				}
				set := c.want == 2 || c.then == 2
				if lines := logs.All()[before:]; set != (len(lines) == 1) || set && !strings.Contains(lines[0].Message, "host setting changed") {
					t.Errorf("lines: %v", lines)
				}
			})
		})
	}
}

// TestMarkIsOfOneBoot: what a boot before says of the host is nothing to go by.
func TestMarkIsOfOneBoot(t *testing.T) {
	m := Mark(filepath.Join(t.TempDir(), "mark"))
	there := func(want bool) {
		t.Helper()
		if got, err := m.There(); got != want || err != nil {
			t.Errorf("it is there: %t, %v", got, err)
		}
	}
	there(false)
	if err := m.Make(); err != nil {
		t.Fatal(err)
	}
	there(true)
	if err := os.WriteFile(string(m), []byte("another boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	there(false)
}

// TestKeeperFollowsTheUnderlay: the interface goes on to hear its routers by which
// packets leave now.
func TestKeeperFollowsTheUnderlay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := usual()
		k := keeperOf(t, h, zap.NewNop())
		if _, err := k.Check(t.Context(), both()); err != nil {
			t.Fatal(err)
		}
		if err := k.Set(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Keep(ctx) }()
		synctest.Wait()
		k.Move(subnet.PerFamily[string]{"eth2", "eth2"}) // Of which nothing is seen: it goes on.
		k.Move(subnet.PerFamily[string]{"eth1", "eth1"})
		time.Sleep(k.pause)
		one, _ := h.Get(acceptRA("eth1"))
		forwards, _ := h.Get(forwardingKey[subnet.V6])
		if one != heedsAlways || forwards != 1 {
			t.Errorf("accept_ra is %d, forwarding is %d", one, forwards)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
