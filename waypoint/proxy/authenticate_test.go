package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/mesh/jwks"
	"github.com/ambit-mesh/ambit/waypoint/jwt"
)

// signer signs tokens by a key that has a name.
type signer struct {
	jose.Signer
	public jose.JSONWebKey
}

func newSigner(t testing.TB, kid string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return signer{s, jose.JSONWebKey{Key: key.Public(), KeyID: kid}}
}

// token says what claims say, and that it ends after a while.
func (s signer) token(t testing.TB, claims string, lasts time.Duration) string {
	t.Helper()
	signed, err := s.Sign([]byte(fmt.Sprintf(`{%s,"exp":%d}`, claims, time.Now().Add(lasts).Unix())))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func keysOf(t testing.TB, signers ...signer) string {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, s := range signers {
		set.Keys = append(set.Keys, s.public)
	}
	out, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// tokenFilter is a filter for tokens of issuer "login" by keys.
func tokenFilter(keys string) string {
	provider := `{issuer: login, audiences: [shop], payload_in_metadata: payload, forward_payload_header: x-payload, claim_to_headers: [{claim_name: sub, header_name: x-user}], ` +
		`normalize_payload_in_metadata: {space_delimited_claims: [scope]}, local_jwks: {inline_string: '` + keys + `'}}`
	return `      - {name: jwt, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication, bypass_cors_preflight: true, providers: {origins-0: ` + provider +
		`}, rules: [{match: {prefix: /}, requires: {requires_any: {requirements: [{provider_name: origins-0}, {allow_missing: {}}]}}}]}}` + "\n"
}

// authenticated is the listener with a filter for tokens, and an RBAC filter after it.
func authenticated(keys, rbac string) string {
	return strings.Replace(guarded(rbac, ""), "      - {name: rbac", tokenFilter(keys)+"      - {name: rbac", 1)
}

// claim is a test of a claim's text, or of one of a list of texts.
func claim(name, text string) string {
	return `{sourced_metadata: {metadata_matcher: {filter: envoy.filters.http.jwt_authn, path: [{key: payload}, {key: ` + name + `}], value: {or_match: {value_matchers: [` +
		`{string_match: ` + text + `}, {list_match: {one_of: {string_match: ` + text + `}}}]}}}}}`
}

// needUser allows whoever has a token, and on /admin whose scope has admin.
var needUser = `rules: {action: ALLOW, policies: {
      "ns[shop]-policy[users]-rule[0]": {permissions: [{not_rule: {url_path: {path: {prefix: /admin}}}}], principals: [` + claim("sub", `{safe_regex: {regex: ".+"}}`) + `]},
      "ns[shop]-policy[users]-rule[1]": {permissions: [{any: true}], principals: [` + claim("scope", `{exact: admin}`) + `]},
      "ns[shop]-policy[users]-rule[2]": {permissions: [{url_path: {path: {exact: /open}}}], principals: [{any: true}]}}}`

// echo tells what came.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "user=%s payload=%t authorization=%q path=%s", r.Header.Get("x-user"), r.Header.Get("x-payload") != "", r.Header.Get("authorization"), r.URL.RequestURI())
})

// TestTokens: requests are authenticated as keys are then, judged by what their token claims, and logged without it.
func TestTokens(t *testing.T) {
	first, second := newSigner(t, "1"), newSigner(t, "2")
	user := `"iss":"login","aud":"shop","sub":"alice"`
	good := first.token(t, user, time.Hour)
	enc := base64.RawURLEncoding.EncodeToString
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Sampling = 0 })
			w.httpPod("v1", 1, echo)
			w.applyWith(toV1, authenticated(keysOf(t, first), needUser))
			c := w.client(version)
			bearer := func(token string) []string { return []string{"authorization: Bearer " + token} }
			challenge := `Bearer realm="http://stock/a", error="invalid_token"`
			for name, tc := range map[string]struct {
				path   string
				header []string
				status int
				body   string
				realm  string
			}{
				"good":              {path: "/a", header: bearer(good), status: 200, body: `user=alice payload=true authorization="" path=/a`},
				"in the query":      {path: "/a?b=1&access_token=" + good, status: 200, body: `user=alice payload=true authorization="" path=/a?b=1`},
				"posing":            {path: "/open", header: []string{"x-user: root", "x-payload: x"}, status: 200, body: `user= payload=false authorization="" path=/open`},
				"none":              {path: "/a", status: 403, body: accessDenied},
				"without the scope": {path: "/admin", header: bearer(good), status: 403, body: accessDenied},
				"with the scope":    {path: "/admin", header: bearer(first.token(t, user+`,"scope":"read admin"`, time.Hour)), status: 200, body: `user=alice payload=true authorization="" path=/admin`},
				"expired":           {path: "/a", header: bearer(first.token(t, user, -2*time.Minute)), status: 401, body: jwt.ErrExpired.Text, realm: challenge},
				"wrong issuer":      {path: "/a", header: bearer(first.token(t, `"iss":"other","aud":"shop"`, time.Hour)), status: 401, body: jwt.ErrIssuer.Text, realm: challenge},
				"wrong audience":    {path: "/a", header: bearer(first.token(t, `"iss":"login","aud":"bank"`, time.Hour)), status: 403, body: jwt.ErrAudience.Text, realm: challenge},
				"unknown kid":       {path: "/a", header: bearer(second.token(t, user, time.Hour)), status: 401, body: jwt.ErrNoKey.Text, realm: challenge},
				"forged":            {path: "/a", header: bearer(newSigner(t, "1").token(t, user, time.Hour)), status: 401, body: jwt.ErrSignature.Text, realm: challenge},
				"alg none":          {path: "/a", header: bearer(enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte("{"+user+"}")) + "."), status: 401, body: jwt.ErrAlg.Text, realm: challenge},
				"huge":              {path: "/a", header: bearer(first.token(t, user+`,"x":"`+strings.Repeat("x", jwt.MaxToken)+`"`, time.Hour)), status: 401, body: jwt.ErrTooLong.Text, realm: challenge},
				"on an open path":   {path: "/open", header: bearer("x"), status: 401, body: jwt.ErrFormat.Text, realm: `Bearer realm="http://stock/open", error="invalid_token"`},
			} {
				for range 2 {
					a := do(t, c, "GET", "http://stock"+tc.path, "", tc.header...)
					if a.StatusCode != tc.status || a.body != tc.body || a.Header.Get("www-authenticate") != tc.realm {
						t.Errorf("%s: %d %q, %q", name, a.StatusCode, a.body, a.Header.Get("www-authenticate"))
					}
				}
			}
			if a := do(t, c, "POST", "http://stock/a", "", "content-type: application/grpc", "authorization: Bearer x"); a.Header.Get("grpc-status") != "16" || a.Header.Get("grpc-message") != jwt.ErrFormat.Text {
				t.Errorf("gRPC: %v", a.Header)
			}
			// The issuer signs by another key, and in the end has none that we know.
			w.applyWith(toV1, authenticated(keysOf(t, first, second), needUser))
			for _, s := range []signer{first, second} {
				if a := do(t, c, "GET", "http://stock/a", "", bearer(s.token(t, user, time.Hour))...); a.StatusCode != 200 {
					t.Errorf("while keys change: %d %q", a.StatusCode, a.body)
				}
			}
			w.applyWith(toV1, authenticated(keysOf(t, second), needUser))
			if a := do(t, c, "GET", "http://stock/a", "", bearer(good)...); a.StatusCode != 401 || a.body != jwt.ErrNoKey.Text {
				t.Errorf("by a key that was taken back: %d %q", a.StatusCode, a.body)
			}
			w.applyWith(toV1, authenticated(jwks.None, needUser))
			if a := do(t, c, "GET", "http://stock/a", "", bearer(good)...); a.StatusCode != 401 || a.body != jwt.ErrNoKeys.Text {
				t.Errorf("without keys: %d %q", a.StatusCode, a.body)
			}
			await(t, "a line that says why", func() bool {
				return strings.Contains(w.log.String(), "response_flags=JWT") && strings.Contains(w.log.String(), jwt.ErrNoKeys.Text)
			})
			if strings.Contains(w.log.String(), good) {
				t.Error("a token is in the log")
			}
		})
	}
}

// TestTokensAndAsking: an authorizer that is asked first sees tokens as they came, and may give one; who is asked later is told what a good one claims.
func TestTokensAndAsking(t *testing.T) {
	w, a := newAskingWorld(t)
	login := newSigner(t, "1")
	good := "Bearer " + login.token(t, `"iss":"login","aud":"shop","sub":"alice"`, time.Hour)
	filter := tokenFilter(keysOf(t, login))
	for _, tc := range []struct {
		name, before      string // the filter that tokens are looked at before
		token, given      string
		status, questions int
		seen, user        string // by the authorizer
	}{
		{"a token that the authorizer gives", "rbac", "", good, 200, 1, "", ""},
		{"a token that the authorizer sees and does not mind", "rbac", "Bearer x", "", 401, 1, "Bearer x", ""},
		{"none at all", "rbac", "", "", 403, 1, "", ""},
		{"a bad token, which the authorizer never sees", "select", "Bearer x", "", 401, 0, "", ""},
		{"a good token, of which the authorizer is told", "select", good, "", 200, 1, "", "alice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := "      - {name: " + tc.before
			w.applyWith(toV1, strings.Replace(asking(byGRPC, `metadata_context_namespaces: [envoy.filters.http.jwt_authn], `, needUser), before, filter+before, 1))
			answer := &authv3.OkHttpResponse{}
			if tc.given != "" {
				answer.Headers = append(answer.Headers, option("authorization", tc.given))
			}
			a.says(always(ok(answer)))
			var header []string
			if tc.token != "" {
				header = append(header, "authorization: "+tc.token)
			}
			r := do(t, w.client("HTTP/1.1"), "GET", "/ask", "", header...)
			if r.StatusCode != tc.status || tc.status == 200 && !strings.Contains(r.body, `user=["alice"]`) {
				t.Errorf("%d %q, want %d", r.StatusCode, r.body, tc.status)
			}
			if n := a.questions(); n != tc.questions {
				t.Fatalf("%d questions, want %d", n, tc.questions)
			}
			if tc.questions == 0 {
				return
			}
			q := a.last(t, 1)
			payload := q.GetMetadataContext().GetFilterMetadata()["envoy.filters.http.jwt_authn"].GetFields()["payload"]
			if got := q.GetRequest().GetHttp().GetHeaders()["authorization"]; got != tc.seen {
				t.Errorf("the authorizer sees the token %q, want %q", got, tc.seen)
			}
			if got := payload.GetStructValue().GetFields()["sub"].GetStringValue(); got != tc.user {
				t.Errorf("the authorizer is told of user %q, want %q", got, tc.user)
			}
		})
	}
}
