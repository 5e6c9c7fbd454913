//go:build runtime

package trials

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// podPort is where the pods of this test answer, hostPort where their node does for
// the one that has it mapped.
const (
	podPort  = 80
	hostPort = 8080
)

// node is a host of the lab with containerd, spoken to as the kubelet does.
type node struct {
	host  *lab.Host
	group string
	calls cri.RuntimeServiceClient
	// confs and plugins are where containerd looks for CNI's lists and programs.
	confs, plugins string
}

// containerdConfig is that of containerd 1.6, the one of Debian 12. Scores below its own
// are refused to a root without CAP_SYS_RESOURCE.
const containerdConfig = `version = 2
root = %q
state = "/run/containerd"
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`

func startContainerd(t *testing.T, h *lab.Host, image, group string) *node {
	t.Helper()
	n := &node{host: h, group: group, confs: filepath.Join(h.Dir, "net.d"), plugins: filepath.Join(h.Dir, "bin")}
	socket, config := filepath.Join(h.Dir, "c.sock"), filepath.Join(h.Dir, "containerd.toml")
	for _, dir := range []string{n.confs, n.plugins} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What comes with the runtime; ours is put there by its daemon.
	for _, plugin := range []string{"loopback", "portmap"} {
		if err := os.Symlink(filepath.Join(standardPlugins(), plugin), filepath.Join(n.plugins, plugin)); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf(containerdConfig, filepath.Join(h.Dir, "containerd"), socket, testImage, n.plugins, n.confs)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	startEnclosed(t, h, "containerd", "--config", config)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	n.calls = cri.NewRuntimeServiceClient(conn)
	eventually(t, 30*time.Second, "containerd answers", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := n.calls.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
		return err == nil
	})
	run(t, "ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", image)
	return n
}

func standardPlugins() string {
	if path := os.Getenv("CNI_PATH"); path != "" {
		return path
	}
	return "/usr/lib/cni"
}

// networkReady is what a node's condition Ready goes by in Kubernetes.
func (n *node) networkReady(t *testing.T) bool {
	t.Helper()
	answer, err := n.calls.Status(t.Context(), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range answer.Status.Conditions {
		if c.Type == cri.NetworkReady {
			return c.Status
		}
	}
	t.Fatalf("%s: containerd says nothing of its network: %v", n.host.Name, answer)
	return false
}

// container is a running container in a pod of its own.
type container struct {
	on        *node
	pod, id   string
	addresses subnet.PerFamily[netip.Addr]
}

// run starts a container that answers with its name at podPort.
func (n *node) run(t *testing.T, name string, ports ...*cri.PortMapping) *container {
	t.Helper()
	pod := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		LogDirectory: n.host.Dir,
		PortMappings: ports,
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: n.group},
	}
	c := &container{on: n}
	made, err := n.calls.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		t.Fatalf("%s: run pod %s: %v", n.host.Name, name, err)
	}
	c.pod = made.PodSandboxId
	status, err := n.calls.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: c.pod})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range append([]*cri.PodIP{{Ip: status.Status.Network.Ip}}, status.Status.Network.AdditionalIps...) {
		a, err := netip.ParseAddr(ip.Ip)
		if err != nil {
			t.Fatalf("pod %s has the address %q", name, ip.Ip)
		}
		c.addresses[subnet.FamilyOf(a)] = a
	}
	created, err := n.calls.CreateContainer(t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: c.pod, SandboxConfig: pod,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name},
			Image:    &cri.ImageSpec{Image: testImage},
			Command: []string{"/bin/busybox", "sh", "-c", fmt.Sprintf(
				"/bin/busybox echo %s > /www/index.html; exec /bin/busybox httpd -f -p [::]:%d -h /www", name, podPort)},
			LogPath: name + ".log",
			Linux:   &cri.LinuxContainerConfig{},
		},
	})
	if err == nil {
		c.id = created.ContainerId
		_, err = n.calls.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: c.id})
	}
	if err != nil {
		t.Fatalf("%s: start container %s: %v", n.host.Name, name, err)
	}
	return c
}

// get asks an address from inside the container.
func (c *container) get(t *testing.T, at netip.AddrPort) string {
	t.Helper()
	answer, err := c.on.calls.ExecSync(t.Context(), &cri.ExecSyncRequest{
		ContainerId: c.id, Timeout: 10,
		Cmd: []string{"/bin/busybox", "timeout", "3", "/bin/busybox", "wget", "-q", "-O", "-", "http://" + at.String() + "/"},
	})
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(answer.Stdout) + string(answer.Stderr))
}

// remove ends the pod.
func (c *container) remove(t *testing.T) {
	t.Helper()
	_, err := c.on.calls.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: c.pod})
	if err == nil {
		_, err = c.on.calls.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: c.pod})
	}
	if err != nil {
		t.Errorf("%s: remove the pod: %v", c.on.host.Name, err)
	}
}

// getFromHost asks an address from a host itself.
func getFromHost(h *lab.Host, at netip.AddrPort) string {
	_, body := httpGet(h, at, "/")
	return body
}

// Containers that containerd starts on two hosts talk, by their own addresses and by a
// port of the other host's that is mapped to one of them; the node's network is ready
// once its daemon is, and nothing is left when the containers are gone.
func TestContainerd(t *testing.T) {
	began := time.Now()
	sofar := func(what string) { t.Logf("%s after %s", what, time.Since(began).Round(10*time.Millisecond)) }
	group := controlGroup(t)
	l := startLab(t, lab.Options{Nodes: 2, Mode: lab.Dual, NoPods: true})
	image := filepath.Join(l.Dir, "busybox.tar")
	busyboxImage(t, image)
	var nodes []*node
	for _, h := range l.Hosts {
		n := startContainerd(t, h, image, group)
		if n.networkReady(t) {
			t.Errorf("%s: the network is ready before there is a daemon", h.Name)
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.host.DaemonArgs = []string{"--cni-conf-dir=" + n.confs, "--cni-bin-dir=" + n.plugins}
		if err := n.host.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		if err := n.host.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, n.host.Name+": containerd's network is ready", func() bool { return n.networkReady(t) })
	}
	sofar("ready")

	a := nodes[0].run(t, "a")
	b := nodes[1].run(t, "b", &cri.PortMapping{Protocol: cri.Protocol_TCP, ContainerPort: podPort, HostPort: hostPort})
	for _, c := range []*container{a, b} {
		env, err := c.on.host.Env()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range subnet.Families {
			if !env.Subnets[f].Contains(c.addresses[f]) {
				t.Errorf("%s: a container has %s, which is not in %s", c.on.host.Name, c.addresses[f], env.Subnets[f])
			}
		}
	}
	for _, f := range subnet.Families {
		ways := []struct {
			what string
			get  func() string
			want string
		}{
			{"from a container to the other", func() string { return a.get(t, netip.AddrPortFrom(b.addresses[f], podPort)) }, "b"},
			{"and back", func() string { return b.get(t, netip.AddrPortFrom(a.addresses[f], podPort)) }, "a"},
			{"from a host to the port of the other", func() string { return getFromHost(l.Hosts[0], netip.AddrPortFrom(l.Hosts[1].Address(f), hostPort)) }, "b"},
			{"from a container to the port of the other host", func() string { return a.get(t, netip.AddrPortFrom(l.Hosts[1].Address(f), hostPort)) }, "b"},
		}
		for _, way := range ways {
			said := ""
			for end := time.Now().Add(time.Minute); said != way.want && time.Now().Before(end); {
				said = way.get()
			}
			if said != way.want {
				t.Errorf("%s, %s: %q, want %q", f, way.what, said, way.want)
			}
		}
	}

	sofar("talked")

	// While the daemon is away containers come and go.
	if _, _, err := l.Hosts[0].StopDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	third := nodes[0].run(t, "c")
	if said := third.get(t, netip.AddrPortFrom(b.addresses[subnet.V4], podPort)); said != "b" {
		t.Errorf("a container that was started without the daemon hears %q", said)
	}
	sofar("third")
	third.remove(t)
	a.remove(t)
	b.remove(t)
	if said := getFromHost(l.Hosts[0], netip.AddrPortFrom(l.Hosts[1].Address(subnet.V4), hostPort)); !strings.Contains(said, "refused") {
		t.Errorf("the port of a container that is gone answers %q", said)
	}
	sofar("gone")
}
