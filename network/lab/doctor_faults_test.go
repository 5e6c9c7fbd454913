package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/subnet"
)

// ill is a fault that lasts, and what the doctor must say of it.
type ill struct {
	name  string
	act   func(*testing.T, *Lab, *Host) error
	check string
	least doctor.Severity
	texts []string
	args  []string
}

// deeds are those of the fault suite by name.
func deedNamed(t *testing.T, name string) func(*testing.T, *Lab, *Host) error {
	t.Helper()
	for _, f := range hostFaults {
		if f.name == name {
			return f.do.act
		}
	}
	t.Fatalf("the fault suite has no %q", name)
	return nil
}

// lasting are the faults of the suite that last while the daemon is dead, in an order
// in which none hides the next.
var lasting = []struct {
	fault, check string
	texts        []string
}{
	{"FDB entry deleted", "entries", []string{"FDB entries are missing in the kernel: packets to node2 are lost", "missing: fdb ", "(of node2)"}},
	{"neighbour deleted", "entries", []string{"neighbours", "are missing", "missing: neigh "}},
	{"route deleted", "entries", []string{"missing: route ", "(of node2)"}},
	{"nexthop deleted", "entries", []string{"nexthops", "missing: nexthop "}},
	{"address deleted", "device", []string{"lacks its address"}},
	{"device's forwarding turned off", "device", []string{"ripstop.1 is not as it should be", "forwarding off"}},
	{"device's rp_filter made strict", "rp_filter", []string{"rp_filter is strict on ripstop.1"}},
	{"device given another MTU", "mtu", []string{"has MTU 1300, the underlay carries 1450"}},
	{"device given another MAC", "device", []string{"there is: link ripstop.1", "address 02:00:00:00:00:01"}},
	{"all routes of protocol 82 flushed", "entries", []string{"routes are missing in the kernel: packets to 2 peers are lost"}},
	{"all FDB entries, neighbours, routes, nexthops deleted", "entries", []string{"4 FDB entries, 4 neighbours, 4 nexthops, 4 routes are missing"}},
	{"device's carrier taken", "device", []string{"there is: link ripstop.1", " down"}},
	{"device set down", "device", []string{"there is: link ripstop-v6.1", " down"}},
	{"nftables' rules flushed", "firewall", []string{"table inet ripstop is missing"}},
	{"subnet file deleted", "subnet-file", []string{"is missing", "subnet.env"}},
	{"device deleted", "device", []string{"device ripstop.1 is missing"}},
}

// brief are the faults of the suite that do not last while the daemon is dead, or are
// made by the test that follows, and why.
var brief = map[string]string{
	"device set down and up":                         "its entries are gone as with \"device set down\"",
	"device made again with another VNI":             "TestDoctorNamesFaults has it without the daemon",
	"device made again, learning":                    "likewise",
	"device made again, bound to eth0":               "likewise",
	"device made again, with a TTL":                  "likewise",
	"another's firewall rule in the way for a while": "likewise, as \"foreign rule\"",
	"host's forwarding turned off":                   "likewise, as \"forwarding of IPv4 off\" and of IPv6",
	"underlay: carrier lost and back":                "likewise",
	"underlay: interface set down and up":            "likewise",
	"underlay: interface deleted and made again":     "likewise",
}

// TestDoctorNamesFaults harms a host whose daemon is dead in every way there is, one
// after another, and each time the doctor says what it is.
func TestDoctorNamesFaults(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, l := range lasting {
		known[l.fault] = true
	}
	for _, f := range hostFaults {
		if _, ok := brief[f.name]; !ok && !known[f.name] {
			t.Errorf("it is not said what the doctor says of the fault %q", f.name)
		}
	}
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	allKnow(t, l)
	store := openStore(t, l)
	h, alive := l.Hosts[0], l.Hosts[1]
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	dead := diagnose(t, h)
	if !dead.names("daemon", doctor.Failure, "does not answer", "systemctl start ripstopd") || strings.Count(dead.text(), "\n") != 0 || dead.code != doctor.ExitFailures {
		t.Errorf("the daemon is dead, and no more is wrong; exit code %d:\n%s", dead.code, dead.text())
	}
	var ills []ill
	for _, f := range lasting {
		ills = append(ills, ill{name: f.fault, act: deedNamed(t, f.fault), check: f.check, least: doctor.Failure, texts: f.texts})
		if f.check == "firewall" || f.check == "mtu" { // Less than could be had, and more than nothing.
			ills[len(ills)-1].least = doctor.Warning
		}
	}
	put := func(key, value string) func(*testing.T, *Lab, *Host) error {
		return func(t *testing.T, _ *Lab, _ *Host) error {
			_, err := store.Put(t.Context(), Prefix+"/"+key, value)
			return err
		}
	}
	sysctl := func(settings ...string) func(*testing.T, *Lab, *Host) error {
		return func(t *testing.T, _ *Lab, h *Host) error { set(t, h, settings...); return nil }
	}
	links := func(fn func(*netlink.Handle) error) func(*testing.T, *Lab, *Host) error {
		return func(_ *testing.T, _ *Lab, h *Host) error { return h.Namespace.netlink(fn) }
	}
	made := func(change func(v *netlink.Vxlan, lower int)) func(*testing.T, *Lab, *Host) error {
		return links(func(n *netlink.Handle) error {
			lower, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "ripstop.1"
			v := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472, SrcAddr: net.IP(h.Address(subnet.V4).AsSlice())}
			change(v, lower.Attrs().Index)
			if old, err := n.LinkByName("ripstop.1"); err == nil {
				if err := n.LinkDel(old); err != nil {
					return err
				}
			}
			return n.LinkAdd(v)
		})
	}
	file := func(name, text string, mode os.FileMode) func(*testing.T, *Lab, *Host) error {
		return func(_ *testing.T, _ *Lab, h *Host) error {
			path := filepath.Join(h.Dir, "cni", name)
			return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode))
		}
	}
	list := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"ripstop-cni","subnetFile":%q}]}`, h.SubnetFile())
	ownKey := "subnets/" + env.Subnets.Key()
	ills = append(ills,
		ill{"device made again, learning", made(func(v *netlink.Vxlan, _ int) { v.Learning = true }), "device", doctor.Failure, []string{"ripstop.1", " learning"}, nil},
		ill{"device made again with another VNI", made(func(v *netlink.Vxlan, _ int) { v.VxlanId = 77 }), "device", doctor.Failure, []string{"cannot be changed in place", "id 77"}, nil},
		ill{"device made again, bound to eth0", made(func(v *netlink.Vxlan, lower int) { v.VtepDevIndex = lower }), "device", doctor.Failure, []string{"cannot be changed in place", "dev eth0"}, nil},
		ill{"device made again, with a TTL", made(func(v *netlink.Vxlan, _ int) { v.TTL = 1 }), "device", doctor.Failure, []string{"misfit"}, nil},
		ill{"checksums left to others", made(func(*netlink.Vxlan, int) {}), "checksum", doctor.Failure, []string{"leaves checksums to others"}, []string{"--tx-checksum=off"}},
		ill{"another VXLAN device of our VNI", links(func(n *netlink.Handle) error {
			ours, err := n.LinkByName("ripstop.1")
			if err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "flannel.1"
			return errors.Join(n.LinkDel(ours), n.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472}))
		}), "tunnels", doctor.Failure, []string{"flannel.1 has VNI 1 on UDP port 8472", "stop flannel"}, nil},
		ill{"an address inside the network", links(func(n *netlink.Handle) error {
			lo, err := n.LinkByName("lo")
			if err != nil {
				return err
			}
			return n.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 5, 255, 9), Mask: net.CIDRMask(32, 32)}})
		}), "overlap", doctor.Failure, []string{"10.5.0.0/16 has address 10.5.255.9/32 of lo"}, nil},
		ill{"forwarding of IPv4 off", sysctl("ipv4/ip_forward=0"), "forwarding", doctor.Failure, []string{"does not forward IPv4", "sysctl -w net.ipv4.ip_forward=1"}, nil},
		ill{"forwarding of IPv6 off", sysctl("ipv6/conf/all/forwarding=0"), "forwarding", doctor.Failure, []string{"does not forward IPv6"}, nil},
		ill{"routers not heard", func(t *testing.T, _ *Lab, h *Host) error {
			set(t, h, "ipv6/conf/all/forwarding=1", "ipv6/conf/"+hostInterface+"/accept_ra=1")
			return dropDefault(h)
		}, "accept_ra", doctor.Warning, []string{"routers are not heard on eth0"}, nil},
		ill{"BIG TCP", links(func(n *netlink.Handle) error {
			eth0, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			return n.LinkSetGSOMaxSize(eth0, 180_000)
		}), "big-tcp", doctor.Warning, []string{"BIG TCP is on", "eth0: gso_max_size 180000"}, nil},
		ill{"the pods' bridge is wider than the tunnel", links(func(n *netlink.Handle) error {
			bridge, err := n.LinkByName(podBridge)
			if err != nil {
				return err
			}
			return n.LinkSetMTU(bridge, 1500)
		}), "mtu", doctor.Warning, []string{"interface cni0, by which pods are reached, has MTU 1500"}, nil},
		ill{"foreign rule", func(t *testing.T, _ *Lab, h *Host) error {
			c, drop := nft(t, h.Namespace), nftables.ChainPolicyDrop
			table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "strict"})
			c.AddChain(&nftables.Chain{Table: table, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
			return c.Flush()
		}, "foreign-rules", doctor.Failure, []string{"table ip strict, chain forward: policy drop", "nft insert rule ip strict forward"}, nil},
		ill{"subnet file of another", func(_ *testing.T, _ *Lab, h *Host) error {
			other := env
			other.Subnets[subnet.V4] = netip.MustParsePrefix("10.5.77.0/24")
			return other.Write(h.SubnetFile())
		}, "subnet-file", doctor.Failure, []string{"the file says 10.5.77.0/24"}, nil},
		ill{"subnet file is a FIFO", func(_ *testing.T, _ *Lab, h *Host) error {
			return errors.Join(os.Remove(h.SubnetFile()), unix.Mkfifo(h.SubnetFile(), 0o644))
		}, "subnet-file", doctor.Failure, []string{"it is no regular file"}, nil},
		ill{"no CNI plugin", file("net.d/10-ripstop.conflist", list, 0o644), "cni", doctor.Failure, []string{"cannot be executed", "no such file"}, nil},
		ill{"CNI plugin not executable", file("bin/ripstop-cni", "old", 0o644), "cni", doctor.Failure, []string{"it may not be executed"}, nil},
		ill{"another CNI list first", file("net.d/05-other.conflist", `{"name":"x","plugins":[{"type":"bridge"}]}`, 0o644), "cni", doctor.Failure, []string{"runtimes use another CNI configuration, 05-other.conflist"}, nil},
		ill{"CNI list of another subnet file", file("net.d/10-ripstop.conflist", strings.Replace(list, "subnet.env", "x.env", 1), 0o644), "cni", doctor.Failure, []string{"another subnet file"}, nil},
		ill{"CNI list torn", file("net.d/10-ripstop.conflist", list[:40], 0o644), "cni", doctor.Failure, []string{"cannot be used", "unexpected end of JSON"}, nil},
		ill{"junk among the records", put("subnets/10.5.66.0-24", "junk"), "records", doctor.Warning, []string{"10.5.66.0-24"}, nil},
		ill{"own address in another's record", put("subnets/10.5.67.0-24", fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"},"Node":"ghost"}`, h.Address(subnet.V4))),
			"underlay", doctor.Warning, []string{"the record of ghost", h.Address(subnet.V4).String()}, nil},
		ill{"own record rewritten", func(t *testing.T, _ *Lab, h *Host) error {
			old, err := store.Get(t.Context(), Prefix+"/"+ownKey)
			if err != nil || len(old.Kvs) != 1 {
				return fmt.Errorf("%s is not there: %w", ownKey, err)
			}
			mac := strings.Index(string(old.Kvs[0].Value), `"VtepMAC":"`) + len(`"VtepMAC":"`)
			text := string(old.Kvs[0].Value)
			return put(ownKey, text[:mac]+"02:00:00:00:00:07"+text[mac+17:])(t, l, h)
			// By its record peers know the node, and by that its device goes.
		}, "device", doctor.Failure, []string{"02:00:00:00:00:07"}, nil},
		ill{"own record deleted", func(t *testing.T, _ *Lab, _ *Host) error {
			_, err := store.Delete(t.Context(), Prefix+"/"+ownKey)
			return err
		}, "record", doctor.Failure, []string{`no record of the node "node1"`}, nil},
		ill{"config broken", put("config", `{"Network": "10.5.0.0"}`), "store", doctor.Failure, []string{"cannot be used", "Network"}, nil},
	)
	for _, i := range ills {
		if err := i.act(t, l, h); err != nil {
			t.Fatalf("%s: %v", i.name, err)
		}
		if d := diagnose(t, h, append(i.args, "--check="+i.check)...); !d.names(i.check, i.least, i.texts...) {
			t.Errorf("%s: the check %q does not name it with %q:\n%s", i.name, i.check, i.texts, d.text())
		}
	}

	// Beside a daemon that lives: packets of a stranger, and a store that is away.
	inner := ipPackets(netip.MustParseAddr("10.5.1.1"), netip.MustParseAddr("10.5.1.2"), udpDatagram(netip.MustParseAddrPort("10.5.1.1:1"), netip.MustParseAddrPort("10.5.1.2:1"), []byte("x")))[0]
	from, to := netip.AddrPortFrom(l.EtcdAddress(subnet.V4), 40000), netip.AddrPortFrom(alive.Address(subnet.V4), 8472)
	sendRaw(t, l.EtcdNamespace(), to.Addr(), ipPackets(from.Addr(), to.Addr(), udpDatagram(from, to, vxlanPacket(1, subnet.MAC{2, 0, 0, 0, 0, 1}, inner))))
	if d := diagnose(t, alive, "--check=guard"); !d.names("guard", doctor.Warning, l.EtcdAddress(subnet.V4).String()+": 1 packet") {
		t.Errorf("a stranger's packet: %s", d.text())
	}
	if err := l.Etcd.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	d := diagnose(t, alive)
	if !d.names("store", doctor.Warning, "the store does not answer: nothing breaks yet", "connection refused") || d.names("entries", doctor.Warning) || d.names("device", doctor.Warning) {
		t.Errorf("etcd is away, and the daemon lives: %s", d.text())
	}
	t.Logf("with etcd away: %s", time.Since(began))
	// The underlay goes; what is known is what was saved.
	port := func(change func(*netlink.Handle, netlink.Link) error) func(*testing.T, *Lab, *Host) error {
		return func(_ *testing.T, l *Lab, h *Host) error {
			return l.Underlay().netlink(func(n *netlink.Handle) error {
				link, err := n.LinkByName(h.Name)
				if err != nil {
					return err
				}
				return change(n, link)
			})
		}
	}
	eth0 := func(change func(*netlink.Handle, netlink.Link) error) func(*testing.T, *Lab, *Host) error {
		return links(func(n *netlink.Handle) error {
			link, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			return change(n, link)
		})
	}
	for _, i := range []ill{
		{"underlay without carrier", port((*netlink.Handle).LinkSetDown), "underlay", doctor.Failure, []string{"eth0 is down or has no carrier"}, nil},
		{"underlay down", eth0((*netlink.Handle).LinkSetDown), "underlay", doctor.Failure, []string{"the underlay does not serve"}, nil},
		{"underlay deleted", eth0((*netlink.Handle).LinkDel), "underlay", doctor.Failure, []string{"no interface has the address " + h.Address(subnet.V4).String()}, nil},
	} {
		if err := i.act(t, l, h); err != nil {
			t.Fatalf("%s: %v", i.name, err)
		}
		if d := diagnose(t, h, "--check="+i.check); !d.names(i.check, i.least, i.texts...) {
			t.Errorf("%s: the check %q does not name it with %q:\n%s", i.name, i.check, i.texts, d.text())
		}
	}
}
