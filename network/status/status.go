// Package status is what a daemon says of itself: the values of its API, as JSON
// has them, the conditions of readiness, and a client.
package status

import (
	"net/netip"
	"time"
)

// Version is that of the values below. It is raised when a reader of the old
// ones would misread the new; keys that are added do not raise it.
const Version = 1

// Status is one node on a page. It costs the same however many peers there are.
// Times are RFC 3339, zero times are left out.
type Status struct {
	Version int    `json:"version"`
	Daemon  Daemon `json:"daemon"`
	Node    string `json:"node"`
	// Backend is the type that the network config names, "" until it is known.
	Backend string `json:"backend,omitempty"`
	// Ready is true while every condition holds.
	Ready bool `json:"ready"`
	// Up tells that a start has come as far as device and peers.
	Up         bool        `json:"up"`
	Conditions []Condition `json:"conditions"`
	// Waiting says what a start waits for, Trouble why a node that came up does
	// not serve; both are empty as a rule.
	Waiting  *Waiting   `json:"waiting,omitempty"`
	Trouble  string     `json:"trouble,omitempty"`
	Lease    Lease      `json:"lease"`
	Underlay []Underlay `json:"underlay"`
	// UnderlayMoves counts how often the underlay became another while the node ran.
	UnderlayMoves uint64   `json:"underlay_moves"`
	Devices       []Device `json:"devices"`
	Peers         Peers    `json:"peers"`
	Store         Store    `json:"store"`
	Loop          Loop     `json:"loop"`
	Firewall      Firewall `json:"firewall"`
	// Probing says who answers; it is no condition of readiness.
	Probing Probing `json:"probing"`
	Host    Host    `json:"host"`
	// SubnetFile is where CNI plugins learn of the subnets; a condition says what
	// is wrong with it.
	SubnetFile File `json:"subnet_file"`
}

// File is one that the node keeps as it wrote it.
type File struct {
	Path string `json:"path"`
	// Restored counts how often it was put back after another hand.
	Restored uint64 `json:"restored"`
}

// Daemon is the process.
type Daemon struct {
	Version  string    `json:"version"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started,omitzero"`
	LogLevel string    `json:"log_level"`
	// Listen is the TCP address of --listen, ListenProblem why nothing answers there.
	Listen        string `json:"listen,omitempty"`
	ListenProblem string `json:"listen_problem,omitempty"`
	// Beat is when the loop last answered.
	Beat time.Time `json:"beat,omitzero"`
}

// Waiting is what a start waits for.
type Waiting struct {
	For    string    `json:"for"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since,omitzero"`
}

// Lease is the node's hold on its subnets.
type Lease struct {
	// Held tells whether the store keeps the subnets for this node, as far as is
	// known: a lease lasts while the store is away.
	Held    bool           `json:"held"`
	Subnets []netip.Prefix `json:"subnets"`
	// Reservation never expires.
	Reservation bool `json:"reservation,omitempty"`
	// Renewed is when the store last renewed it, Expires until when it keeps it
	// from then on.
	Renewed  time.Time `json:"renewed,omitzero"`
	Expires  time.Time `json:"expires,omitzero"`
	Renewals uint64    `json:"renewals"`
	Losses   uint64    `json:"losses"`
	// Problem says why it is not held.
	Problem string `json:"problem,omitempty"`
}

// Underlay is where a family's tunnel leaves the host.
type Underlay struct {
	Family    string     `json:"family"`
	Interface string     `json:"interface"`
	Address   netip.Addr `json:"address"`
	Public    netip.Addr `json:"public"`
	// MTU is in bytes.
	MTU    int    `json:"mtu"`
	Reason string `json:"reason"`
	// Problem says why it does not serve at present; the node goes on with what
	// is said here of it.
	Problem string `json:"problem,omitempty"`
	// Next is what it is to be and what that waits for: peers may be told of another
	// public address before the node sends from it.
	Next string `json:"next,omitempty"`
}

// Device is one of the node's own.
type Device struct {
	Name      string         `json:"name"`
	VNI       uint32         `json:"vni"`
	Port      uint16         `json:"port"`
	MAC       string         `json:"mac"`
	MTU       int            `json:"mtu"` // Bytes.
	Local     netip.Addr     `json:"local"`
	Addresses []netip.Prefix `json:"addresses"`
	// Right tells whether the kernel has device and addresses as they are wanted.
	Right bool `json:"right"`
	// Problem says what is wrong.
	Problem string `json:"problem,omitempty"`
}

// Peers are the other nodes, in numbers.
type Peers struct {
	Count int `json:"count"`
	// Held peers have no record any more and are kept for a time of grace. The
	// others count how holds ended.
	Held         int     `json:"held"`
	GraceSeconds float64 `json:"grace_seconds"`
	Returned     int     `json:"held_returned"`
	Displaced    int     `json:"held_displaced"`
	Expired      int     `json:"held_expired"`
	// PassedOver counts records that are no peers and should be; Records has the
	// first of them.
	PassedOver int      `json:"passed_over"`
	Records    []Record `json:"records,omitempty"`
}

// Record is a record of the store that is passed over.
type Record struct {
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

// StoreState says how far the node's copy of the store is to be trusted.
type StoreState string

// The states of a copy.
const (
	// Unread: nothing is known yet, neither from the store nor saved.
	Unread StoreState = "unread"
	// Current: the store answers, and the copy follows it.
	Current StoreState = "current"
	// Stale: the store is away, which is known; the copy is as it was then.
	Stale StoreState = "stale"
	// Silent: the store has not been heard for longer than it is ever silent,
	// and nobody knows why.
	Silent StoreState = "silent"
)

// Store is the node's copy of the store.
type Store struct {
	State    StoreState `json:"state"`
	Revision int64      `json:"revision"`
	Epoch    string     `json:"epoch,omitempty"`
	// Heard is when the store last said something.
	Heard time.Time `json:"heard,omitzero"`
	// Outage is the one that lasts.
	Outage *Outage `json:"outage,omitempty"`
	// Saved tells that the copy is from what the node saved before it started.
	Saved bool `json:"saved,omitempty"`
	// Listings are whole readings, Changes the steps after them, Outages those
	// that began.
	Listings uint64 `json:"listings"`
	Changes  uint64 `json:"changes"`
	Outages  uint64 `json:"outages"`
	// Config says how the network config in the store differs from the one in use.
	Config string `json:"config,omitempty"`
}

// Outage is a time in which the store does not answer.
type Outage struct {
	Since    time.Time `json:"since,omitzero"`
	Reason   string    `json:"reason"`
	Failures int       `json:"failures"`
}

// Loop is what keeps the kernel as it is wanted. Its counts begin with the
// daemon.
type Loop struct {
	// Passes compared something, LastPass is when the last one ended and
	// LastSeconds what it took.
	Passes      uint64    `json:"passes"`
	LastPass    time.Time `json:"last_pass,omitzero"`
	LastSeconds float64   `json:"last_pass_seconds"`
	PassTimes   Times     `json:"pass_seconds"`
	// Wanted is how many entries the kernel is to have, Failing how many it does
	// not take and Fought how many an outside hand undoes again and again.
	Wanted  int `json:"wanted"`
	Failing int `json:"failing"`
	Fought  int `json:"fought"`
	// Problems has the first of those.
	Problems []Problem `json:"problems,omitempty"`

	Ops      uint64 `json:"ops"`
	Failures uint64 `json:"failures"`
	Drift    uint64 `json:"drift"`
	// Findings are what an audit found and nobody had announced.
	Findings uint64 `json:"findings"`
	Dumps    Dumps  `json:"dumps"`
	// Unread says why the kernel is to be read again, where it cannot be yet.
	Unread string `json:"unread,omitempty"`
}

// Dumps are readings of the kernel by their reason.
type Dumps struct {
	Start    uint64 `json:"start"`
	Doubt    uint64 `json:"doubt"`
	Surprise uint64 `json:"surprise"`
	Audit    uint64 `json:"audit"`
	Failed   uint64 `json:"failed"`
}

// Times is how long things took, in seconds.
type Times struct {
	Count uint64  `json:"count"`
	Sum   float64 `json:"sum"`
	// Buckets counts those of at most so many seconds, each with those before it.
	Buckets []Bucket `json:"buckets,omitempty"`
}

// Bucket is a bound in seconds and how many were within it.
type Bucket struct {
	Within float64 `json:"within"`
	Count  uint64  `json:"count"`
}

// Problem is an entry that is not as it is wanted, or not for long.
type Problem struct {
	// Entry is in the notation of ip and bridge.
	Entry  string `json:"entry"`
	Reason string `json:"reason"`
	// Foreign tells that something of somebody else's stands in the way, Fought
	// that an outside hand undoes it again and again.
	Foreign bool `json:"foreign,omitempty"`
	Fought  bool `json:"fought,omitempty"`
}
