package firewall

import (
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

var (
	doAccept = &expr.Verdict{Kind: expr.VerdictAccept}
	doDrop   = &expr.Verdict{Kind: expr.VerdictDrop}
	doReject = &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}
)

func ifname(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{meta(key), &expr.Cmp{Op: op, Register: reg, Data: append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)}}
}

func state(mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		isNot(make([]byte, 4)),
	}
}

func stateXT(mask uint16) []expr.Any {
	info := &xt.ConntrackMtinfo3{}
	info.MatchFlags, info.StateMask = uint16(xt.ConntrackState), mask
	return []expr.Any{&expr.Match{Name: "conntrack", Rev: 3, Info: info}}
}

func tcpPort(port byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyL4PROTO), is([]byte{unix.IPPROTO_TCP}), load(expr.PayloadBaseTransportHeader, portAt, 2), is([]byte{0, port})}
}

// writer writes somebody else's rules.
type writer struct {
	t     *testing.T
	c     *conn
	table *nftables.Table
}

func (w writer) base(name string, priority int32, policy nftables.ChainPolicy) {
	w.c.nft.AddTable(w.table)
	w.c.nft.AddChain(&nftables.Chain{
		Table: w.table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)), Policy: &policy,
	})
}

func (w writer) chain(name string) { w.c.nft.AddChain(&nftables.Chain{Table: w.table, Name: name}) }

func (w writer) rule(chain string, parts ...any) {
	var exprs []expr.Any
	for _, p := range parts {
		switch p := p.(type) {
		case expr.Any:
			exprs = append(exprs, p)
		case []expr.Any:
			exprs = append(exprs, p...)
		case term:
			exprs = append(exprs, p.exprs...)
		default:
			w.t.Fatalf("a rule's part is a %T", p)
		}
	}
	w.c.nft.AddRule(&nftables.Rule{Table: w.table, Chain: &nftables.Chain{Name: chain}, Exprs: exprs})
}

func (w writer) done() {
	w.t.Helper()
	if err := w.c.nft.Flush(); err != nil {
		w.t.Fatal(err)
	}
}

const (
	acceptPolicy = nftables.ChainPolicyAccept
	dropPolicy   = nftables.ChainPolicyDrop
)

// What drops pods' traffic is found in rulesets as others write them, and what
// does not is not.
func TestFindings(t *testing.T) {
	n := networks["dual"]
	inet := func(name string) *nftables.Table {
		return &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
	}
	ip := func(name string) *nftables.Table {
		return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: name}
	}
	ip6 := func(name string) *nftables.Table {
		return &nftables.Table{Family: nftables.TableFamilyIPv6, Name: name}
	}
	goTo := func(kind expr.VerdictKind, chain string) *expr.Verdict {
		return &expr.Verdict{Kind: kind, Chain: chain}
	}
	for name, test := range map[string]struct {
		table *nftables.Table
		write func(w writer)
		want  []string // Rules.
	}{
		"nothing":                    {inet("x"), func(w writer) { w.base("forward", 0, acceptPolicy) }, nil},
		"policy":                     {ip("x"), func(w writer) { w.base("forward", 0, dropPolicy) }, []string{"policy drop"}},
		"policy of the other family": {ip6("x"), func(w writer) { w.base("forward", 0, dropPolicy); w.rule("forward", proto(0), doAccept) }, []string{"policy drop"}},
		"accepted before the policy": {ip("x"), func(w writer) {
			w.base("forward", 0, dropPolicy)
			w.rule("forward", source(n.Ranges[0]), doAccept)
			w.rule("forward", destination(n.Ranges[0]), doAccept)
		}, nil},
		"only one way is accepted": {ip("x"), func(w writer) {
			w.base("forward", 0, dropPolicy)
			w.rule("forward", ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, "ripstop.1"), doAccept)
		}, []string{"policy drop"}},
		"a port is dropped": {inet("x"), func(w writer) {
			w.base("forward", 0, acceptPolicy)
			w.rule("forward", tcpPort(22), doDrop)
		}, nil},
		"a port is accepted": {ip("x"), func(w writer) {
			w.base("forward", 0, dropPolicy)
			w.rule("forward", tcpPort(22), doAccept)
		}, nil}, // Not for certain.
		"what is established is accepted": {ip("x"), func(w writer) {
			w.base("forward", 0, dropPolicy)
			w.rule("forward", state(2|4), doAccept)
			w.rule("forward", stateXT(2|4), doAccept)
		}, []string{"policy drop"}},
		"what is new is accepted": {ip("x"), func(w writer) {
			w.base("forward", 0, dropPolicy)
			w.rule("forward", stateXT(8|2), doAccept)
		}, nil},
		"invalid is dropped": {inet("x"), func(w writer) {
			w.base("forward", 0, acceptPolicy)
			w.rule("forward", state(1), doDrop)
		}, nil},
		"as firewalld does": {inet("firewalld"), func(w writer) {
			w.base("filter_FORWARD", 10, acceptPolicy)
			w.chain("filter_FWD_public")
			w.chain("policies")
			w.rule("filter_FORWARD", state(2|4), doAccept)
			w.rule("filter_FORWARD", ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, "lo"), doAccept)
			w.rule("filter_FORWARD", ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, "eth0"), goTo(expr.VerdictGoto, "filter_FWD_public"))
			w.rule("filter_FORWARD", goTo(expr.VerdictJump, "policies"))
			w.rule("policies", goTo(expr.VerdictGoto, "filter_FWD_public"))
			w.rule("filter_FWD_public", tcpPort(22), doAccept)
			w.rule("filter_FORWARD", state(1), doDrop)
			w.rule("filter_FORWARD", doReject)
		}, nil}, // A port is let in: not for certain.
		"as firewalld does, with no service": {inet("firewalld"), func(w writer) {
			w.base("filter_FORWARD", 10, acceptPolicy)
			w.chain("policies")
			w.chain("public")
			w.rule("filter_FORWARD", state(2|4), doAccept)
			w.rule("filter_FORWARD", goTo(expr.VerdictJump, "policies"))
			w.rule("policies", goTo(expr.VerdictGoto, "public"))
			w.rule("public", doReturn)
			w.rule("public", doAccept)
			w.rule("filter_FORWARD", doReject)
		}, []string{"reject"}},
		"in a chain that is jumped to": {inet("x"), func(w writer) {
			w.base("forward", 0, acceptPolicy)
			w.chain("a")
			w.chain("b")
			w.rule("forward", goTo(expr.VerdictJump, "a"))
			w.rule("a", goTo(expr.VerdictJump, "b"))
			w.rule("b", proto(0), source(n.Ranges[0]), doDrop)
		}, []string{"meta nfproto 0x02 ip saddr 10.5.0.0/16 drop"}},
		"by a set": {inet("x"), func(w writer) {
			w.base("forward", 0, acceptPolicy)
			s := &nftables.Set{Table: w.table, Name: "bad", KeyType: nftables.TypeIPAddr, Interval: true}
			if err := w.c.nft.AddSet(s, []nftables.SetElement{
				{Key: []byte{10, 5, 0, 0}}, {Key: []byte{10, 6, 0, 0}, IntervalEnd: true},
				{Key: []byte{10, 9, 0, 0}}, {Key: []byte{10, 10, 0, 0}, IntervalEnd: true},
			}); err != nil {
				w.t.Fatal(err)
			}
			w.rule("forward", proto(0), sourceIn(0, "bad"), doDrop)
		}, []string{"meta nfproto 0x02 ip saddr @bad drop"}},
		"by a set of others": {inet("x"), func(w writer) {
			w.base("forward", 0, acceptPolicy)
			s := &nftables.Set{Table: w.table, Name: "bad", KeyType: nftables.TypeIPAddr}
			if err := w.c.nft.AddSet(s, []nftables.SetElement{{Key: []byte{10, 6, 0, 1}}}); err != nil {
				w.t.Fatal(err)
			}
			w.rule("forward", proto(0), sourceIn(0, "bad"), doDrop)
		}, nil},
		"by a verdict map": {inet("x"), func(w writer) {
			w.base("forward", 0, acceptPolicy)
			w.chain("new")
			s := &nftables.Set{Table: w.table, Name: "states", KeyType: nftables.TypeCTState, DataType: nftables.TypeVerdict, IsMap: true}
			if err := w.c.nft.AddSet(s, []nftables.SetElement{
				{Key: binaryutil.NativeEndian.PutUint32(2), VerdictData: doAccept},
				{Key: binaryutil.NativeEndian.PutUint32(8), VerdictData: goTo(expr.VerdictJump, "new")},
			}); err != nil {
				w.t.Fatal(err)
			}
			w.rule("forward", &expr.Ct{Key: expr.CtKeySTATE, Register: reg}, &expr.Lookup{SourceRegister: reg, SetName: "states", IsDestRegSet: true})
			w.rule("new", proto(1), doDrop)
		}, []string{"meta nfproto 0x0a drop"}},
		"by what is not understood": {inet("x"), func(w writer) {
			w.base("forward", 0, acceptPolicy)
			w.rule("forward", &expr.Numgen{Register: reg, Modulus: 2, Type: unix.NFT_NG_RANDOM}, is([]byte{0, 0, 0, 0}), doDrop)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := outside(t, kerneltest.Namespace(t))
			w := writer{t, c, test.table}
			test.write(w)
			w.done()
			o, err := c.readOthers(mostChains)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range o.findings(n) {
				t.Log(f)
				got = append(got, f.Rule)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("found %q, want %q", got, test.want)
			}
		})
	}
}
