package status

import (
	"net/netip"
	"time"
)

// Firewall is what the node keeps of the host's packet filter, and what of it is
// in the pods' way. It is no condition of readiness: a host that lacks nftables
// serves its pods all the same, and another's rules are not the node's to change.
type Firewall struct {
	// Kept tells that the node keeps rules. All else is empty where it does not.
	Kept bool `json:"kept"`
	// Problem says why the rules are not as wanted.
	Problem string `json:"problem,omitempty"`
	// Guard tells that the tunnel's packets are let in from peers alone, Peers how
	// many addresses those have. Dropped counts the packets of others; it may be a
	// second old, and begins with the rules rather than with the daemon.
	Guard   bool   `json:"guard"`
	Peers   int    `json:"peers"`
	Dropped uint64 `json:"dropped"`
	// Strangers are who sent what was dropped in the last ten minutes or so, the
	// busiest first, 10 at most; none where the kernel cannot tell.
	Strangers []Stranger `json:"strangers,omitempty"`
	// Writes counts the transactions that changed something, Heals those that
	// undid what another hand had done; LastHeal is when the last was.
	Writes   uint64    `json:"writes"`
	Heals    uint64    `json:"heals"`
	LastHeal time.Time `json:"last_heal,omitzero"`
	// Findings are others' rules that drop pods' traffic, 20 or so at most.
	Findings []Rule `json:"findings,omitempty"`
}

// Stranger is an address of no peer that sends the tunnel's packets.
type Stranger struct {
	Address netip.Addr `json:"address"`
	Packets uint64     `json:"packets"`
}

// Rule is one of somebody else's.
type Rule struct {
	// Table and Chain are where it is, such as "ip filter" and "FORWARD".
	Table string `json:"table"`
	Chain string `json:"chain"`
	// Rule is its text in nft's language or nearly so, or "policy drop".
	Rule string `json:"rule"`
	// Traffic says what it drops, Mend is a command that lets that pass.
	Traffic string `json:"traffic"`
	Mend    string `json:"mend"`
	// Certain is false where rules are there that cannot be read.
	Certain bool `json:"certain"`
}
