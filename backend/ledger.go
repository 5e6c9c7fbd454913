package backend

// Ledger keeps what is owed to the kernel: the wanted state, as the union of
// what each party (a peer, or the node itself) owes. An entry that two owe goes
// when the last of them lets it go. The zero Ledger is empty.
type Ledger struct {
	want State
	// more counts, for an entry that several owe, those beyond the first.
	more map[Entry]int
}

// Want is the wanted state. It changes with the ledger and is not to be
// changed otherwise.
func (l *Ledger) Want() *State { return &l.want }

// Owe adds entries. Of two with one identity the later is wanted; planners and
// the judge of peers see to it that there are none.
func (l *Ledger) Owe(entries ...Entry) {
	for _, e := range entries {
		if l.want.Has(e) {
			put(&l.more, e, l.more[e]+1)
			continue
		}
		l.want.Put(e)
	}
}

// Release takes back what was owed by Owe.
func (l *Ledger) Release(entries ...Entry) {
	for _, e := range entries {
		switch n := l.more[e]; {
		case n > 1:
			l.more[e] = n - 1
		case n == 1:
			delete(l.more, e)
		case l.want.Has(e):
			l.want.Drop(e)
		}
	}
}
