//go:build packages

// Tests with the standard plugins of a distribution (Debian's package
// containernetworking-plugins), for "make test-packages". CNI_PATH names their
// folder where it is another one.

package main

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

func standardPlugins() string {
	if path := os.Getenv("CNI_PATH"); path != "" {
		return path
	}
	return "/usr/lib/cni"
}

// The plugins that usually follow do their work on what ripstop-cni made, and
// undo it.
func TestRealChain(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string, families lab.Mode) {
		l, machines := startHosts(t, families, mode, standardPlugins())
		m, other := machines[0], machines[1].mustAdd(t)
		m.version = "1.0.0" // What Debian 12's plugins know.
		m.behind = []map[string]any{
			{"type": "tuning", "sysctl": map[string]string{"net.core.somaxconn": "511"}, "mac": "02:11:22:33:44:55"},
			{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}},
			{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
			{"type": "firewall"},
		}
		before := picture(t, m.ns)
		p := m.newPod(t)
		const hostPort, podPort = 8080, 80
		p.caps = map[string]any{
			"bandwidth":    map[string]int{"ingressRate": 100_000_000, "ingressBurst": 100_000_000, "egressRate": 100_000_000, "egressBurst": 100_000_000},
			"portMappings": []map[string]any{{"hostPort": hostPort, "containerPort": podPort, "protocol": "tcp"}},
		}
		if err := m.add(t, p); err != nil {
			t.Fatalf("ADD: %s", describe(err))
		}
		// Debian 12's portmap looks for the rules of both families at its CHECK.
		chain := m.behind
		m.behind = chain[:2:2]
		if err := m.check(t, p); err != nil {
			t.Errorf("CHECK: %s", describe(err))
		}
		m.behind = chain
		link, err := handleOf(t, p.ns).LinkByName(ifName)
		if err != nil || link.Attrs().HardwareAddr.String() != "02:11:22:33:44:55" {
			t.Errorf("tuning: %v, %v", link, err)
		}
		var somaxconn []byte
		if err := p.ns.Do(func() (err error) {
			somaxconn, err = os.ReadFile("/proc/sys/net/core/somaxconn")
			return err
		}); err != nil || strings.TrimSpace(string(somaxconn)) != "511" {
			t.Errorf("tuning: somaxconn is %q, %v", somaxconn, err)
		}
		host := handleOf(t, m.ns)
		pair, err := host.LinkByName(attachment{networkName, p.name, ifName}.hostName())
		if err != nil {
			t.Fatal(err)
		}
		qdiscs, err := host.QdiscList(pair)
		if err != nil || len(qdiscs) == 0 || qdiscs[0].Type() != "tbf" {
			t.Errorf("bandwidth: %v, %v", qdiscs, err)
		}
		for _, f := range families.Families() {
			reach(t, l, p, other, link.Attrs().MTU)
			// From another host to the pod's port on this one.
			serve(t, p.ns, netip.AddrPortFrom(p.addresses[f], podPort))
			if got := call(t, l.Hosts[2].Namespace, netip.AddrPortFrom(l.Hosts[0].Address(f), hostPort)); got != "here" {
				t.Errorf("%s: portmap: port %d of the host says %q", f, hostPort, got)
			}
			if got := rulesOf(t, m, f, p); !strings.Contains(got, "CNI-FORWARD") || !strings.Contains(got, "CNI-DN-") {
				t.Errorf("%s: firewall and portmap have for the pod\n%s", f, got)
			}
		}
		m.del(t, p)
		for _, f := range families.Families() {
			if got := rulesOf(t, m, f, p); got != "" {
				t.Errorf("%s: left behind:\n%s", f, got)
			}
		}
		if got := m.allocated(t); len(got) > 0 {
			t.Errorf("%v are still allocated", got)
		}
		after := picture(t, m.ns)
		for line := range strings.Lines(after) {
			if strings.HasPrefix(line, "link ") && !strings.Contains(before, strings.TrimSpace(line)) && !strings.HasPrefix(line, "link cni0 ") {
				t.Errorf("left behind: %s", line)
			}
		}
	})
}

// rulesOf are the rules of iptables' with a pod's address, and those of the chain that
// portmap makes for a pod, a line each.
func rulesOf(t *testing.T, m *machine, f subnet.Family, p *pod) string {
	t.Helper()
	save := subnet.PerFamily[string]{subnet.V4: "iptables-save", subnet.V6: "ip6tables-save"}[f]
	var out, said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), save)
	cmd.Stdout, cmd.Stderr = &out, &said
	err := m.ns.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", save, err, &said)
	}
	address := regexp.MustCompile(regexp.QuoteMeta(p.addresses[f].String()) + `(/|\s|\]|:|$)`)
	var rules strings.Builder
	for line := range strings.Lines(out.String()) {
		if address.MatchString(line) || strings.Contains(line, "CNI-DN-") {
			rules.WriteString(line)
		}
	}
	return rules.String()
}

// serve answers "here" to whoever connects, until the test ends.
func serve(t *testing.T, ns *lab.Namespace, at netip.AddrPort) {
	t.Helper()
	var listener net.Listener
	if err := ns.Do(func() (err error) { listener, err = net.Listen("tcp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("here"))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = listener.Close(); <-done })
}

// call connects and returns what it is told.
func call(t *testing.T, ns *lab.Namespace, to netip.AddrPort) string {
	t.Helper()
	var said []byte
	err := ns.Do(func() error {
		c, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		said, err = io.ReadAll(c)
		return err
	})
	if err != nil {
		t.Errorf("connect to %s: %v", to, err)
	}
	return string(said)
}

// delegate is the configuration that flannel's plugin makes of a subnet file for
// bridge and host-local. The first dataDir is for this test alone.
func delegate(t *testing.T, e envfile.Env, dataDir string) map[string]any {
	t.Helper()
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, f := range subnet.Families {
		if e.Subnets[f].IsValid() {
			ranges = append(ranges, []map[string]string{{"subnet": e.Subnets[f].String()}})
			routes = append(routes, map[string]string{"dst": e.Networks[f].String()})
		}
	}
	return map[string]any{
		"type": "bridge", "dataDir": dataDir, "mtu": e.MTU, "ipMasq": !e.IPMasq, "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
		"ipam": map[string]any{"type": "host-local", "dataDir": dataDir, "ranges": ranges, "routes": routes},
	}
}

// The way of flannel's plugin, bridge and host-local with what the subnet file
// says, works on Ripstop's; and a node may change to ripstop-cni under such pods,
// which go on, keep their addresses, and end by ripstop-cni's DEL; and back.
func TestRealBridgeAndHostLocal(t *testing.T) {
	for _, families := range lab.Modes {
		t.Run(string(families), func(t *testing.T) {
			t.Parallel()
			l, machines := startHosts(t, families, bridged, standardPlugins())
			var pods []*pod
			var own, theirs []map[string]any
			for i, m := range machines {
				env, err := envfile.Read(l.Hosts[i].SubnetFile())
				if err != nil {
					t.Fatal(err)
				}
				env.IPMasq = true // It is the daemon's task.
				own = append(own, m.keys)
				dataDir := m.keys["dataDir"].(string)
				m.keys, m.version = delegate(t, env, dataDir), "1.0.0"
				theirs = append(theirs, m.keys)
				pods = append(pods, m.mustAdd(t))
			}
			env, err := l.Hosts[0].Env()
			if err != nil {
				t.Fatal(err)
			}
			all := func(pods []*pod) {
				t.Helper()
				for _, a := range pods {
					for _, b := range pods {
						if a != b {
							reach(t, l, a, b, env.MTU)
						}
					}
				}
			}
			all(pods)
			for i, m := range machines {
				m.keys = own[i]
			}
			m := machines[0]
			m.keys["mode"] = ptp
			wantCode(t, m.add(t, m.newPod(t)), codeOccupied, `"mode" to "bridge"`)
			m.keys["mode"] = bridged
			fresh := m.mustAdd(t)
			if fresh.addresses == pods[0].addresses {
				t.Fatalf("two pods have %v", fresh.addresses)
			}
			all(append(pods, fresh))
			m.del(t, pods[0])
			if got := m.allocated(t); len(got) != len(families.Families()) {
				t.Errorf("allocated are %v, want those of the one pod", got)
			}
			if links, err := handleOf(t, pods[0].ns).LinkList(); err != nil || containsLink(links, ifName) {
				t.Errorf("the container that host-local's address was taken from has links %v, %v", links, err)
			}
			all(append(pods[1:], fresh))

			// And back.
			m.keys = theirs[0]
			back := m.mustAdd(t)
			all([]*pod{fresh, back, pods[1]})
			m.del(t, fresh)
			if got := m.allocated(t); len(got) != len(families.Families()) {
				t.Errorf("allocated are %v, want those of the one pod", got)
			}
			all([]*pod{back, pods[1]})
		})
	}
}

func containsLink(links []netlink.Link, name string) bool {
	for _, l := range links {
		if l.Attrs().Name == name {
			return true
		}
	}
	return false
}
