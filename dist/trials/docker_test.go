//go:build runtime

package trials

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// engine is a dockerd on a host of the lab.
type engine struct {
	host    *lab.Host
	process *enclosed
	socket  string
	group   string
}

// startDocker starts a dockerd whose containers are of a control group.
func startDocker(t *testing.T, h *lab.Host, group string, dockerd ...string) *engine {
	t.Helper()
	e := &engine{host: h, socket: "unix://" + filepath.Join(h.Dir, "d.sock"), group: group}
	e.process = startEnclosed(t, h, dockerd[0], append(dockerd[1:], "--host", e.socket, "--data-root", filepath.Join(h.Dir, "docker"),
		"--exec-root", "/run/docker", "--pidfile", "/run/docker.pid")...)
	eventually(t, 30*time.Second, "dockerd answers", func() bool { return e.command(t.Context(), "docker", "version").Run() == nil })
	return e
}

// command is a program that speaks to the engine.
func (e *engine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.socket, "DOCKER_BUILDKIT=0")
	return cmd
}

func (e *engine) do(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := e.command(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// dropIn is what Documentation/docker.md has operators install.
const dropIn = "../systemd/docker.service.d/ripstop.conf"

// byDropIn starts dockerd on a host as the drop-in has systemd do: by the command that
// writes the options, and with the words of the variable that it writes. What only a
// systemd and a containerd beside it give is left out.
func byDropIn(t *testing.T, h *lab.Host, group string) *engine {
	t.Helper()
	text, err := os.ReadFile(dropIn)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"EnvironmentFile=-/run/ripstop/docker.env\n", "ExecStartPre=/usr/bin/ripstop docker-opts --file /run/ripstop/docker.env\n",
		"ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS\n",
	} {
		if !strings.Contains(string(text), line) {
			t.Fatalf("%s has no %q: this test starts another thing than it does", dropIn, line)
		}
	}
	variables := filepath.Join(h.Dir, "docker.env")
	run(t, filepath.Join(programs, "ripstop"), "docker-opts", "--file", variables, "--subnet-file", h.SubnetFile())
	return startDocker(t, h, group, "sh", "-c", `. "$1"; shift; exec dockerd $DOCKER_OPTS "$@"`, "sh", variables)
}

// unpublished is a second port where the containers answer, which Docker has no rule for:
// what it drops by its policy reaches no container there.
const unpublished = 81

// dockerContainer is a running container of an engine's.
type dockerContainer struct {
	on        *engine
	name      string
	addresses subnet.PerFamily[netip.Addr]
}

// run starts a container that answers whoever asks with its name and with the address
// that it sees them by.
func (e *engine) run(t *testing.T, name string, flags ...string) *dockerContainer {
	t.Helper()
	const serve = `busybox --install /bin
mkdir -p /www/cgi-bin
cat > /www/cgi-bin/who <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
echo %s sees "$REMOTE_ADDR"
END
chmod 755 /www/cgi-bin/who
httpd -p [::]:%d -h /www
exec httpd -f -p [::]:%d -h /www`
	args := append([]string{"run", "--detach", "--name=" + name, "--cgroup-parent=" + e.group, "--entrypoint=/bin/busybox"}, flags...)
	e.do(t, "docker", append(args, testImage, "sh", "-c", fmt.Sprintf(serve, name, podPort, unpublished))...)
	c := &dockerContainer{on: e, name: name}
	const both = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}"
	for _, text := range strings.Fields(e.do(t, "docker", "inspect", "--format", both, name)) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			t.Fatalf("container %s has the address %q", name, text)
		}
		c.addresses[subnet.FamilyOf(a)] = a
	}
	return c
}

// ask asks an address from inside the container.
func (c *dockerContainer) ask(t *testing.T, at netip.AddrPort) string {
	t.Helper()
	out, _ := c.on.command(t.Context(), "docker", "exec", c.name, "timeout", "3", "wget", "-q", "-O", "-", "http://"+at.String()+"/cgi-bin/who").CombinedOutput()
	return strings.TrimSpace(string(out))
}

// onHost runs a program on a host of the lab and returns what it said.
func onHost(t *testing.T, h *lab.Host, name string, args ...string) string {
	t.Helper()
	var out output
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := h.Namespace.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s: %s %s: %v\n%s", h.Name, name, strings.Join(args, " "), err, &out)
	}
	return out.String()
}

// withDocker starts and ends a Docker as it was on the host before Ripstop came. It turns
// forwarding on, and that is when it has iptables drop what is not its own; a Docker
// that finds a host that forwards leaves that as it is (libnetwork, setupIPForwarding).
func withDocker(t *testing.T, h *lab.Host, group string) {
	t.Helper()
	if err := h.Namespace.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) }); err != nil {
		t.Fatal(err)
	}
	if err := startDocker(t, h, group, "dockerd").process.end(); err != nil {
		t.Fatal(err)
	}
}

// Containers that Docker starts by the drop-in's options, with all the rules that it
// writes, have addresses of their nodes' subnets, reach each other across nodes and
// are seen by these addresses, and answer at ports of their nodes that are mapped to them.
func TestDocker(t *testing.T) {
	group := controlGroup(t)
	l := startLab(t, lab.Options{Nodes: 2, Mode: lab.Dual, NoPods: true})
	image := filepath.Join(l.Dir, "busybox.tar")
	busyboxImage(t, image)
	var containers []*dockerContainer
	for _, h := range l.Hosts {
		withDocker(t, h, group)
		h.DaemonArgs = []string{"--ip-masq"}
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := h.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		e := byDropIn(t, h, group)
		e.do(t, "docker", "load", "--input", image)
		c := e.run(t, "on-"+h.Name, fmt.Sprintf("--publish=%d:%d", hostPort, podPort))
		containers = append(containers, c)
		env, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range subnet.Families {
			if !env.Subnets[f].Contains(c.addresses[f]) {
				t.Errorf("%s: a container has %s, which is not in %s", h.Name, c.addresses[f], env.Subnets[f])
			}
		}
		if mtu := e.do(t, "docker", "exec", c.name, "cat", "/sys/class/net/eth0/mtu"); mtu != fmt.Sprint(env.MTU) {
			t.Errorf("%s: a container has an MTU of %s, want %d", h.Name, mtu, env.MTU)
		}
		// Docker's own, without which this test would show nothing.
		if rules := onHost(t, h, "iptables", "-S"); !strings.Contains(rules, "-P FORWARD DROP\n") || !strings.Contains(rules, "-j DOCKER-USER\n") {
			t.Errorf("%s: Docker does not drop what it does not forward:\n%s", h.Name, rules)
		}
		if rules := onHost(t, h, "iptables", "-t", "nat", "-S"); strings.Contains(rules, "-s "+env.Subnets[subnet.V4].String()+" ! -o docker0 -j MASQUERADE") {
			t.Errorf("%s: Docker masquerades, too:\n%s", h.Name, rules)
		}
	}
	a, b := containers[0], containers[1]
	says := func(what, want string, ask func() string) {
		t.Helper()
		said := ""
		for end := time.Now().Add(time.Minute); said != want && time.Now().Before(end); {
			said = ask()
		}
		if said != want {
			t.Errorf("%s: %q, want %q", what, said, want)
		}
	}
	for _, f := range subnet.Families {
		for _, way := range [][]*dockerContainer{{a, b}, {b, a}} {
			from, to := way[0], way[1]
			says(from.name+" asks "+to.name, to.name+" sees "+seenAs(from.addresses[f]), func() string {
				return from.ask(t, netip.AddrPortFrom(to.addresses[f], unpublished))
			})
		}
	}
	for i, h := range l.Hosts {
		other := l.Hosts[1-i]
		at := netip.AddrPortFrom(other.Address(subnet.V4), hostPort)
		_, said := httpGet(h, at, "/cgi-bin/who")
		if want := containers[1-i].name + " sees " + seenAs(h.Address(subnet.V4)); said != want {
			t.Errorf("the port of %s, asked from %s: %q, want %q", other.Name, h.Name, said, want)
		}
		if said := containers[i].ask(t, at); !strings.HasPrefix(said, containers[1-i].name+" sees ") {
			t.Errorf("the port of %s, asked from a container of %s: %q", other.Name, h.Name, said)
		}
	}
	for _, h := range l.Hosts {
		if rules := onHost(t, h, "iptables", "-S", "DOCKER-USER"); !strings.Contains(rules, "-j ACCEPT") {
			t.Errorf("%s: no rule of Ripstop's:\n%s", h.Name, rules)
		}
	}
	// The containers go, and Docker's rules are as they were.
	for i, c := range slices.Backward(containers) {
		c.on.do(t, "docker", "rm", "--force", c.name)
		if _, said := httpGet(l.Hosts[1-i], netip.AddrPortFrom(l.Hosts[i].Address(subnet.V4), hostPort), "/"); !strings.Contains(said, "refused") {
			t.Errorf("the port of a container that is gone answers %q", said)
		}
	}
}

// seenAs is an address as the server of these containers, which listens to IPv6 and
// with it to IPv4, writes it.
func seenAs(a netip.Addr) string {
	if a.Is4() {
		return "[::ffff:" + a.String() + "]"
	}
	return "[" + a.String() + "]"
}
