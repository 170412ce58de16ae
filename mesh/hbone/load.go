package hbone

import (
	"time"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/share"
)

// Estimates of work for share.Party.
const (
	// workPerByte is for payload, through TLS or not.
	workPerByte share.Work = 1
	// workPerMessage is for what is read at once, however short.
	workPerMessage = 4096 * workPerByte
	// workPerHandshake is a TLS handshake of either side.
	workPerHandshake share.Work = time.Millisecond

	// workStep is after how much work a party is told.
	workStep = 64 << 10 * workPerByte
)

// load is what a direction of a relay costs its party.
type load struct {
	budget *buffer.Budget
	party  *share.Party
	work   share.Work // that the party was not told of
}

// limit is how much may be read at once, where without a bound it is n.
func (l *load) limit(n int) int {
	if l.budget.Over() {
		return min(n, buffer.Tiny-h2.Headroom)
	}
	return n
}

// did counts n bytes that were passed on, and waits if the party is to hold back.
func (l *load) did(n int) {
	if l.due(n) {
		l.tell()
	}
}

// due is did without the waiting, which is for tell if it returns true.
func (l *load) due(n int) bool {
	l.work += workPerMessage + workPerByte*share.Work(n)
	return l.work >= workStep
}

func (l *load) tell() {
	l.party.Did(l.work)
	l.work = 0
}
