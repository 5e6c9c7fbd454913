package path

import "testing"

// Whatever works and whatever does not, what is deduced of four requests is true; and
// if any of them is answered, it is complete.
func TestDeductionsAreTrueAndComplete(t *testing.T) {
	for bits := range 16 {
		var real ways
		for i := range 4 {
			real[i/2][i%2] = Broken
			if bits&(1<<i) != 0 {
				real[i/2][i%2] = Works
			}
		}
		var echoes [2][2]Outcome
		any := false
		for there := range echoes {
			for here := range echoes[there] {
				echoes[there][here].Reply = Silent
				if real[there][Out] == Works && real[here][Back] == Works {
					echoes[there][here].Reply, any = Answered, true
				}
			}
		}
		got := deduce(echoes)
		for l := range got {
			for d := range got[l] {
				switch {
				case any && got[l][d] != real[l][d]:
					t.Errorf("%v: %s %v: deduced %v", real, Layer(l), d, got[l][d])
				case !any && got[l][d] != Unknown:
					t.Errorf("%v: %s %v: deduced %v from nothing", real, Layer(l), d, got[l][d])
				}
			}
		}
	}
}

func TestNothingIsDeducedOfALayerThatIsNotAsked(t *testing.T) {
	var echoes [2][2]Outcome
	echoes[Underlay][Underlay].Reply = Answered
	if got := deduce(echoes); got[Overlay] != [2]Way{} || got[Underlay] != [2]Way{Works, Works} {
		t.Errorf("deduced %v", got)
	}
}

// TestARefusalComesBackAsItWent: of requests by the underlay whose answers were to come
// by the overlay nothing is learnt of the overlay, when nobody listens.
func TestARefusalComesBackAsItWent(t *testing.T) {
	var s Seen
	for there := range s.Echoes {
		for here := range s.Echoes[there] {
			s.Echoes[there][here].Reply = Silent
		}
	}
	s.Echoes[Underlay][Overlay].Reply = Refused
	if got := deduce(s.Echoes); got[Underlay] != [2]Way{Works, Works} || got[Overlay] != [2]Way{} {
		t.Errorf("deduced %v", got)
	}
	if !s.refused() || !s.heard(Underlay) || s.heard(Overlay) || !s.carries(Underlay) || s.carries(Overlay) {
		t.Errorf("refused %t, underlay heard %t, overlay %t", s.refused(), s.heard(Underlay), s.heard(Overlay))
	}
}
