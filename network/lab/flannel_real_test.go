//go:build flannel

// A cluster of the real flanneld, for "FLANNELD=/path/to/flanneld make test-flannel".

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/subnet"
)

// startFlanneld starts the real flanneld on a host and waits for its subnet.
func startFlanneld(t *testing.T, h *Host) *exec.Cmd {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(h.Dir, "flanneld.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Getenv("FLANNELD"), "--etcd-endpoints="+h.lab.EtcdURL(), "--etcd-prefix="+Prefix,
		"--iface="+hostInterface, "--ip-masq", "--subnet-file="+h.SubnetFile())
	cmd.Stdout, cmd.Stderr = log, log
	_ = os.Remove(h.SubnetFile())
	if err := h.Namespace.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("flanneld on %s:\n%s", h.Name, text)
		}
		_ = log.Close()
	})
	eventually(t, 30*time.Second, h.Name+" has a subnet of flanneld's", func() bool {
		_, err := h.Env()
		return err == nil
	})
	return cmd
}

// found is what flanneld has given a host.
func found(t *testing.T, h *Host) flannel {
	t.Helper()
	env, err := envfile.Read(h.SubnetFile())
	if err != nil {
		t.Fatal(err)
	}
	f := flannel{host: h, subnets: env.Subnets, direct: strings.Contains(h.lab.opts.Config, "DirectRouting")}
	err = h.Namespace.netlink(func(n *netlink.Handle) error {
		for _, family := range h.lab.Families() {
			link, err := n.LinkByName(flannelNames[family])
			if err != nil {
				return err
			}
			f.macs[family] = subnet.MAC(link.Attrs().HardwareAddr)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestRealFlannel: a cluster of the real flanneld is taken over node by node under a
// ping, loses nothing, and runs mixed in between; a node that goes back to flanneld is
// reached again.
func TestRealFlannel(t *testing.T) {
	for name, test := range map[string]struct {
		mode   Mode
		config string
	}{
		"ipv4":           {IPv4, `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}`},
		"dual":           {Dual, `{"EnableIPv4": true, "EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:10:5::/48", "Backend": {"Type": "vxlan"}}`},
		"dual, direct":   {Dual, `{"EnableIPv4": true, "EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:10:5::/48", "Backend": {"Type": "vxlan", "DirectRouting": true}}`},
		"ipv4, nftables": {IPv4, `{"Network": "10.5.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			l := startLab(t, Options{Nodes: 3, Mode: test.mode, Config: test.config, NoDaemons: true})
			flanneld := map[*Host]*exec.Cmd{}
			for _, h := range l.Hosts {
				flanneld[h] = startFlanneld(t, h)
			}
			var all []flannel
			for _, h := range l.Hosts {
				all = append(all, found(t, h))
				if err := h.addPods(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
			}
			everyPairTalks(t, l, 30*time.Second)
			pings := pingAll(t, l)
			for i, f := range all {
				h := f.host
				if i == 0 { // It is refused while flanneld lives.
					if err := h.StartDaemon(); err != nil {
						t.Fatal(err)
					}
					saysInTime(t, h, "flanneld (process ")
				}
				_ = flanneld[h].Process.Signal([]os.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGTERM}[i])
				_ = flanneld[h].Wait()
				if i > 0 {
					if err := h.StartDaemon(); err != nil {
						t.Fatal(err)
					}
				}
				if err := h.WaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Second) // What flannels nearby do about it is to be seen.
				f.isOurs(t, all)
			}
			// One goes back with its device in place, and loses nothing either.
			if _, _, err := all[1].host.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			startFlanneld(t, all[1].host)
			time.Sleep(time.Second)
			cleanUp(t, all[1].host)
			time.Sleep(2 * time.Second)
			if again := found(t, all[1].host); again != all[1] {
				t.Errorf("back at flannel it has %+v, had %+v", again, all[1])
			}
			pings.lostNone(t)

			back := all[2]
			if _, _, err := back.host.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			cleanUp(t, back.host)
			startFlanneld(t, back.host)
			if env, err := back.host.Env(); err != nil || env.Subnets != back.subnets {
				t.Errorf("back at flannel it has %v, %v, had %s", env, err, back.subnets)
			}
			everyPairTalks(t, l, 30*time.Second)
		})
	}
}
