package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"regexp"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/subnet"
)

// dockerOpts has the flags of ripstop docker-opts.
type dockerOpts struct {
	subnetFile, file, key           string
	combined, individual, leaveMasq bool
}

func newDockerOpts() *cobra.Command {
	var d dockerOpts
	cmd := &cobra.Command{
		Use:   "docker-opts",
		Short: "Write Docker's options for this node's subnet",
		Long: `Turn the subnet file into options of dockerd, as variables for a unit of systemd, by
which Docker gives its containers addresses of this node's subnet. It does what
mk-docker-opts.sh does that comes with flannel, and has its short flags.

Docker masquerades what leaves the host, unless ripstopd does (--ip-masq): then Docker
is told not to. IPv6 is turned on where the node has an IPv6 subnet. Docker's bridge
cannot do without IPv4.`,
		Example: `  ripstop docker-opts
  ripstop docker-opts --file /run/ripstop/docker.env   # EnvironmentFile= of docker.service
  ripstop docker-opts -i   # a variable for each option`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return d.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&d.subnetFile, "subnet-file", "f", "/run/flannel/subnet.env", "the daemon's `file` of that name")
	flags.StringVarP(&d.file, "file", "d", "", "`file` to write, whole (to standard output if empty)")
	flags.BoolVarP(&d.individual, "individual", "i", false, "only a variable for each option: DOCKER_OPT_BIP and so on")
	flags.BoolVarP(&d.combined, "combined", "c", false, "only the one variable with all options, which is what is written without -i")
	flags.StringVarP(&d.key, "key", "k", "DOCKER_OPTS", "`name` of that variable")
	flags.BoolVarP(&d.leaveMasq, "no-ip-masq", "m", false, "leave --ip-masq out")
	cmd.MarkFlagsMutuallyExclusive("individual", "combined")
	return cmd
}

// variable is what a shell and systemd take for the name of one.
var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (d *dockerOpts) run(cmd *cobra.Command) error {
	if !variable.MatchString(d.key) {
		return fmt.Errorf("--key: %q is no variable's name", d.key)
	}
	if _, err := os.Stat(d.subnetFile); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not there: ripstopd writes it once it is ready ('ripstop status' tells what it waits for)", d.subnetFile)
	}
	env, err := envfile.Read(d.subnetFile)
	if err != nil {
		return err
	}
	options, err := dockerOptions(env, !d.leaveMasq)
	if err != nil {
		return fmt.Errorf("%s: %w", d.subnetFile, err)
	}
	text := d.variables(options)
	if d.file == "" {
		_, err := fmt.Fprint(cmd.OutOrStdout(), text)
		return err
	}
	if err := renameio.WriteFile(d.file, []byte(text), 0o644, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("write Docker's options: %w", err)
	}
	return nil
}

// dockerOption is one of dockerd's, --name=value.
type dockerOption struct{ name, value string }

// dockerOptions are those that put Docker's bridge onto a node's subnet: it takes
// the first address, of IPv6 by itself.
func dockerOptions(e envfile.Env, masq bool) ([]dockerOption, error) {
	v4, v6 := e.Subnets[subnet.V4], e.Subnets[subnet.V6]
	switch {
	case !v4.IsValid():
		return nil, errors.New("it has no IPv4 subnet, without which Docker's bridge cannot be")
	case e.MTU <= 0:
		return nil, errors.New("it has no MTU")
	}
	options := []dockerOption{{"bip", netip.PrefixFrom(v4.Addr().Next(), v4.Bits()).String()}}
	if v6.IsValid() {
		options = append(options, dockerOption{"ipv6", "true"}, dockerOption{"fixed-cidr-v6", v6.String()})
	}
	if masq {
		options = append(options, dockerOption{"ip-masq", fmt.Sprint(!e.IPMasq)})
	}
	return append(options, dockerOption{"mtu", fmt.Sprint(e.MTU)}), nil
}

// variables is the text of a file that shells and systemd read alike.
func (d *dockerOpts) variables(options []dockerOption) string {
	var text strings.Builder
	var all []string
	for _, o := range options {
		option := "--" + o.name + "=" + o.value
		all = append(all, option)
		if d.individual {
			fmt.Fprintf(&text, "DOCKER_OPT_%s=%q\n", strings.ToUpper(strings.ReplaceAll(o.name, "-", "_")), option)
		}
	}
	if !d.individual {
		fmt.Fprintf(&text, "%s=%q\n", d.key, strings.Join(all, " "))
	}
	return text.String()
}
