package proxy

import (
	"strings"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

// judging is the chain by whose policies a request is judged: as they are now, since its connection may be older.
func (r *request) judging(snapshot *config.Snapshot) *config.Chain {
	if chain := r.c.now(snapshot); chain != nil {
		return chain
	}
	return r.c.chain // nobody can connect any more
}

// maxRealm bounds the path of the address that a client is told its token is for. Envoy's.
const maxRealm = 256

// authenticate looks at the tokens of the request. Policies decide what one without a token may do.
func (r *request) authenticate(chain *config.Chain) *refusal {
	a := chain.Authentication
	if a == nil {
		return nil
	}
	req := &r.x.Request
	realm := a.Bare(req.Path)
	claims, failure := a.Authenticate(req, r.c.proxy.tokens, r.start)
	if failure == nil {
		r.claims = claims
		return nil
	}
	realm = req.Scheme + "://" + req.Authority + realm[:min(len(realm), maxRealm)]
	return &refusal{
		status: failure.Status, flag: telemetry.RequestUnauthenticated, text: failure.Text,
		challenge: failure.Challenge(strings.NewReplacer(`"`, "%22", `\`, "%5C").Replace(realm)),
	}
}
