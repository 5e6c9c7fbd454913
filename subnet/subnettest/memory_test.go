package subnettest_test

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemoryConformance(t *testing.T) {
	subnettest.Conformance(t, func(*testing.T) subnettest.Harness {
		m := subnettest.NewMemory()
		m.Sign(50 * time.Millisecond)
		m.Renew(50 * time.Millisecond)
		return subnettest.Harness{Open: func(*testing.T) subnettest.Client { return m }, Hand: m}
	})
}

func TestMemoryAway(t *testing.T) {
	m := subnettest.NewMemory()
	m.SetConfig([]byte("{}"))
	r := subnettest.Record(t, m)
	if c := r.Next(); !c.Whole {
		t.Fatalf("first change is %+v", c)
	}
	m.Away(true)
	if _, err := m.List(t.Context()); err == nil {
		t.Error("List of a store that is away gave no error")
	}
	m.Put("10.5.1.0-24", []byte(`{"PublicIP":"192.0.2.1"}`), true)
	m.Delete("10.5.1.0-24")
	r.Silent(50 * time.Millisecond)
	m.Away(false)
	if c := r.Next(); len(c.Leases) != 1 {
		t.Errorf("first after the return is %+v", c)
	}
	if c := r.Next(); len(c.Gone) != 1 {
		t.Errorf("second after the return is %+v", c)
	}
	m.Away(true)
	m.Put("10.5.2.0-24", []byte(`{"PublicIP":"192.0.2.1"}`), true)
	m.Compact()
	m.Away(false)
	if c := r.Next(); !c.Whole || len(c.Leases) != 1 {
		t.Errorf("after a compaction came %+v", c)
	}
}

func TestMemoryRefuses(t *testing.T) {
	m := subnettest.NewMemory()
	m.Refuse(true)
	if _, err := m.List(t.Context()); !errors.Is(err, subnet.ErrRefused) {
		t.Errorf("List: %v", err)
	}
	r := subnettest.Record(t, m)
	r.Silent(50 * time.Millisecond)
	m.Refuse(false)
	r.Next()
	m.Refuse(true)
	m.Compact()
	r.Silent(50 * time.Millisecond)
	m.Refuse(false)
	if c := r.Next(); !c.Whole {
		t.Errorf("after a refusal came %+v", c)
	}
}
