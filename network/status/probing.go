package status

import (
	"net/netip"
	"time"
)

// Probing is how peers are asked whether they can be reached, and answered.
type Probing struct {
	// Port is that at which this node answers, 0 where it does not. Problem says why
	// it cannot be had. Answered and Ignored count what came in.
	Port     uint16 `json:"port"`
	Problem  string `json:"problem,omitempty"`
	Answered uint64 `json:"answered"`
	Ignored  uint64 `json:"ignored"`
	// EverySeconds is the time between two turns, in each of which some peers are
	// asked; 0 where none are.
	EverySeconds float64 `json:"every_seconds"`
	// Layers has the underlay and the overlay.
	Layers []ProbedLayer `json:"layers,omitempty"`
	// Silent are peers that do not answer, the first of them; Unnamed counts how
	// often another did not, for whom there was no room.
	Silent  []SilentPeer `json:"silent,omitempty"`
	Unnamed uint64       `json:"unnamed"`
	// CutOff is since when nearly no peer answers on any layer.
	CutOff time.Time `json:"cut_off,omitzero"`
}

// ProbedLayer is how it goes on one layer. Asked counts questions, Lost those that
// were not answered within a second.
type ProbedLayer struct {
	Layer string `json:"layer"`
	Asked uint64 `json:"asked"`
	Lost  uint64 `json:"lost"`
	// RoundTrips are the times from question to answer.
	RoundTrips Times `json:"round_trip_seconds"`
}

// SilentPeer is one that does not answer on a layer.
type SilentPeer struct {
	Node    string         `json:"node"`
	Subnets []netip.Prefix `json:"subnets"`
	Layer   string         `json:"layer"`
	// Since is when the first question went unanswered, Asked how many have since.
	Since time.Time `json:"since"`
	Asked int       `json:"asked"`
	// Reason is what the last one met.
	Reason string `json:"reason"`
}
