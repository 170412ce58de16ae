package scenarios

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// issuer signs tokens.
type issuer struct {
	jose.Signer
	keys string // the set of its public key, as JSON
}

func newIssuer(t *testing.T) issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	return issuer{signer, string(keys)}
}

// token is the value of a field for a member of a group.
func (i issuer) token(t *testing.T, name, group string) string {
	t.Helper()
	signed, err := i.Sign(fmt.Appendf(nil, `{"iss":%q,"sub":"alice","groups":[%q],"exp":%d}`, name, group, time.Now().Add(time.Hour).Unix()))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return "Bearer " + text
}

// question is a request with what it should be answered.
type question struct {
	path, field, value string // of a header, if there is a name
	status             int
	user               string // of whom the server is told, if it is asked for its header
}

// tokens: requests are authenticated by tokens of issuers whose keys are in the policy or at an address, and judged by what they claim.
// Before that somebody outside is asked about one path, who may give a request its token.
func (w *world) tokens(t *testing.T, ns string) {
	const inline, fetched = "https://inline.example", "https://fetched.example"
	first, second := newIssuer(t), newIssuer(t)
	address := fmt.Sprintf("http://server2.%s.svc.cluster.local:%d%s?text=%s", ns, traffic.PortHTTP, traffic.PathSay, url.QueryEscape(second.keys))
	defer w.settings(t, fmt.Sprintf(`extensionProviders: [{name: gate, envoyExtAuthzHttp: {service: server2.%s.svc.cluster.local, port: %d, pathPrefix: %s,
  timeout: 10s, includeRequestHeadersInCheck: [%s], headersToUpstreamOnAllow: [authorization]}}]`, ns, traffic.PortHTTP, traffic.PathGate[:len(traffic.PathGate)-1], traffic.FieldPass))()
	policies := fmt.Appendf(nil, `
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: login, namespace: %[1]s}
spec:
  targetRefs: [{group: "", kind: Service, name: server}]
  jwtRules:
  - {issuer: %[2]s, jwks: %[3]q, outputClaimToHeaders: [{claim: sub, header: x-user}]}
  - {issuer: %[4]s, jwksUri: %[5]q}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: staff, namespace: %[1]s}
spec:
  targetRefs: [{group: "", kind: Service, name: server}]
  rules:
  - from: [{source: {requestPrincipals: ["%[2]s/alice", "%[4]s/*"]}}]
    when: [{key: "request.auth.claims[groups]", values: [staff]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gate, namespace: %[1]s}
spec:
  action: CUSTOM
  provider: {name: gate}
  targetRefs: [{group: "", kind: Service, name: server}]
  rules: [{to: [{operation: {paths: ["/old*"]}}]}]
`, ns, inline, first.keys, fetched, address)
	w.must(t, w.Apply(w.ctx, policies))
	good := first.token(t, inline, "staff")
	w.answered(t, ns, "requests are judged by their tokens", []question{
		{"/split?headers", "authorization", good, 200, "alice"},
		{"/split", "authorization", second.token(t, fetched, "staff"), 200, ""},
		{"/split", "authorization", first.token(t, inline, "guests"), 403, ""},
		{"/split", "authorization", second.token(t, inline, "staff"), 401, ""},
		{"/split", "", "", 403, ""},
		{"/old/menu", "authorization", good, traffic.StatusNoPass, ""},
		{"/old/menu", traffic.FieldPass, good, 200, ""},
	})
	w.conditionOf(t, "requestauthentications", ns, "login", "WaypointAccepted", "True", "Accepted")
	w.condition(t, ns, "gate", "WaypointAccepted", "True", "Accepted")
	w.must(t, w.Delete(w.ctx, policies))
	w.answered(t, ns, "requests need no token any more", []question{{"/split", "", "", 200, ""}, {"/old/menu", "", "", 200, ""}})
}

// answered asks Service server until everything is answered as it should be.
func (w *world) answered(t *testing.T, ns, what string, questions []question) {
	t.Helper()
	w.must(t, harness.Await(w.ctx, harness.Until{What: what, Within: converged, InARow: 2}, func(ctx context.Context) error {
		var wrong error
		for i, q := range questions {
			request := traffic.HTTPRequest{URL: "http://server:8080" + q.path, HTTP2: i%2 == 1}
			if q.field != "" {
				request.Header = map[string]string{q.field: q.value}
			}
			replies, err := w.ask(ctx, ns, request)
			if err != nil {
				return err
			}
			if r := replies[0]; r.Status != q.status || r.Who.Header.Get("x-user") != q.user {
				wrong = errors.Join(wrong, fmt.Errorf("question %d (%s): status %d for user %q, want %d for %q: %s", i, q.path, r.Status, r.Who.Header.Get("x-user"), q.status, q.user, r.Error))
			}
		}
		return wrong
	}))
}
