package subnet

import (
	"errors"
	"fmt"
	"net/netip"
)

// Identity is who this node is to its peers.
type Identity struct {
	// Node is its name: the same after a reboot, another than every peer's.
	Node string
	// PublicIP is its address on the underlay, per family in use.
	PublicIP PerFamily[netip.Addr]
}

// Owns tells whether a lease is this node's own: it bears the node's name, or
// it bears no name (a flannel's, or one reserved by hand) and the node's address.
func (id Identity) Owns(l Lease) bool {
	if l.Node != "" {
		return l.Node == id.Node
	}
	for _, f := range Families {
		if a := id.PublicIP[f]; a.IsValid() && l.Endpoints[f].PublicIP.IsValid() {
			return l.Endpoints[f].PublicIP == a
		}
	}
	return false
}

// BadRecord is a record that was read and cannot be used.
type BadRecord struct {
	// Key is the last part of its key in the store.
	Key string
	// Reason says what is wrong with it.
	Reason string
}

// String gives key and reason.
func (b BadRecord) String() string { return b.Key + ": " + b.Reason }

// CheckSubnets tells why a lease's subnets do not fit the network, nil if they
// do. A dual-stack network takes leases of one family too, as a cluster has
// them while it moves to two.
func (c Config) CheckSubnets(s Subnets) error {
	used := false
	for _, f := range c.Families() {
		if !s[f].IsValid() {
			continue
		}
		used = true
		if err := c.Ranges[f].Check(s[f]); err != nil {
			return err
		}
	}
	if !used {
		return errors.New("no subnet in a family that the network uses")
	}
	return nil
}

// CheckPublic tells why nobody can send to a public address, nil if one can.
func (c Config) CheckPublic(f Family, a netip.Addr) error {
	switch {
	case !a.IsValid():
		return fmt.Errorf("%s public address is missing", f)
	case !Unicast(a):
		return fmt.Errorf("public address %s is not a host's", a)
	case c.Ranges[f].Network.Contains(a):
		// Packets to it would enter the tunnel that they are to carry.
		return fmt.Errorf("public address %s is inside the network %s", a, c.Ranges[f].Network)
	}
	return nil
}

// CheckPeer tells why no packet can be sent to the holder of a lease: a subnet
// that does not fit, a public address or a MAC that no node can have, or one
// that is this node's own. A lease that only reserves is refused as well.
func (c Config) CheckPeer(self Identity, l Lease) error {
	if err := c.CheckSubnets(l.Subnets); err != nil {
		return err
	}
	if l.Backend != c.Backend.Type {
		return fmt.Errorf("BackendType is %q, the network's is %q", l.Backend, c.Backend.Type)
	}
	for _, f := range c.Families() {
		if !l.Subnets[f].IsValid() {
			continue
		}
		e := l.Endpoints[f]
		if err := c.CheckPublic(f, e.PublicIP); err != nil {
			return err
		}
		switch {
		case e.PublicIP == self.PublicIP[f]:
			return fmt.Errorf("public address %s is this node's own", e.PublicIP)
		case l.Backend == "vxlan" && (e.MAC == MAC{}):
			return fmt.Errorf("%s VtepMAC is missing or zero", f)
		case e.MAC[0]&1 == 1:
			return fmt.Errorf("%s VtepMAC %s is a multicast address", f, e.MAC)
		}
	}
	return nil
}
