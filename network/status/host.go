package status

import (
	"fmt"
	"strings"
	"time"
)

// Host is what the node keeps of the settings of its host. That packets of pods are
// forwarded is a condition of readiness.
type Host struct {
	// Kept tells that the node sees to settings. All else is empty where it does not.
	Kept bool `json:"kept"`
	// Settings are those that it keeps, as they are when the status is made.
	Settings []Setting `json:"settings,omitempty"`
	// Problem says why one could not be read or set when it was last tried.
	Problem string `json:"problem,omitempty"`
	// Restored counts how often one was put back after another hand, LastRestored is
	// when that was last.
	Restored     uint64    `json:"restored"`
	LastRestored time.Time `json:"last_restored,omitzero"`
}

// Setting is one of the host's.
type Setting struct {
	// Name is that of sysctl.
	Name string `json:"name"`
	Want int    `json:"want"`
	Have int    `json:"have"`
	// Right tells whether it does what it is wanted for.
	Right bool `json:"right"`
	// Forwards is the family of whose packets none are forwarded where it is wrong, ""
	// for what is kept for another reason.
	Forwards string `json:"forwards,omitempty"`
	// PerInterface tells that it cannot be written, and that each interface has one of
	// its own instead.
	PerInterface bool `json:"per_interface,omitempty"`
	// Restored counts how often it was put back. Fought tells that an outside hand
	// changes it again and again.
	Restored uint64 `json:"restored"`
	Fought   bool   `json:"fought,omitempty"`
}

// String is as in a file for sysctl.
func (s Setting) String() string { return fmt.Sprintf("%s=%d", s.Name, s.Have) }

// Wrong counts the settings that are not as they are wanted.
func (h Host) Wrong() (n int) {
	for _, s := range h.Settings {
		if !s.Right {
			n++
		}
	}
	return n
}

// forwardingProblem says why pods' packets are not forwarded, or only now and then.
// It is empty for a node that is up and needs nothing of its host.
func forwardingProblem(s Status) string {
	if !s.Host.Kept && !s.Up {
		return "the host's settings have not been seen to yet"
	}
	var all []string
	for _, set := range s.Host.Settings {
		if set.Forwards == "" || set.Right && !set.Fought {
			continue
		}
		text := fmt.Sprintf("%s is %d, so that no %s packets of pods are forwarded", set.Name, set.Have, set.Forwards)
		if set.Right {
			text = fmt.Sprintf("%s packets of pods are forwarded by fits and starts", set.Forwards)
		}
		switch {
		case set.Fought:
			text += fmt.Sprintf(": an outside hand changes %s again and again, %s put back", set.Name, Count(int(set.Restored), "time", "times"))
		case s.Host.Problem == "":
			text += ": it is put back in a moment"
		}
		all = append(all, text)
	}
	if len(all) > 0 && s.Host.Problem != "" {
		all = append(all, s.Host.Problem)
	}
	return strings.Join(all, "; ")
}
