package authn_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/jwks"
)

func read(t testing.TB, text string) *authn.Policy {
	t.Helper()
	var spec any
	if err := yaml.Unmarshal([]byte(text), &spec); err != nil {
		t.Fatal(err)
	}
	return authn.Read("shop", "p", spec)
}

func keys(t testing.TB) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.Public(), KeyID: "k"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestRead(t *testing.T) {
	p := read(t, `
targetRefs:
- {kind: Service, group: "", name: web}
- {kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}
jwtRules:
- issuer: https://one.example/
- issuer: two
  jwksUri: https://two.example/keys
  audiences: [a, b]
  fromHeaders: [{name: X-Token, prefix: "Bearer "}, {name: x-other}]
  fromParams: [t]
  fromCookies: [c]
  forwardOriginalToken: true
  outputPayloadToHeader: X-Payload
  outputClaimToHeaders: [{claim: a.b, header: X-A}]
  spaceDelimitedClaims: [roles, scope]
  timeout: 2s
`)
	want := &authn.Policy{
		Namespace: "shop", Name: "p", Attached: true,
		Targets: []authz.Target{{Kind: authz.TargetService, Name: "web"}, {Kind: authz.TargetGateway, Name: "waypoint"}},
		Rules: []authn.Rule{
			{Issuer: "https://one.example/", Source: authn.Source{Issuer: "https://one.example/"}, Timeout: 5 * time.Second, Lists: []string{"permission", "scope"}},
			{
				Issuer: "two", Source: authn.Source{URI: "https://two.example/keys"}, Audiences: []string{"a", "b"}, Timeout: 2 * time.Second,
				Headers: []authn.Header{{Name: "x-token", Prefix: "Bearer "}, {Name: "x-other"}}, Params: []string{"t"}, Cookies: []string{"c"}, Forward: true,
				PayloadHeader: "x-payload", ClaimHeaders: []authn.ClaimHeader{{Claim: "a.b", Header: "x-a"}}, Lists: []string{"permission", "roles", "scope"},
			},
		},
	}
	if diff := cmp.Diff(*want, *p, cmpopts.IgnoreUnexported(authn.Policy{})); diff != "" {
		t.Error(diff)
	}
	if got := p.Rules[0].Source.String(); got != "https://one.example/.well-known/openid-configuration" {
		t.Error(got)
	}
	text := keys(t)
	p = read(t, "jwtRules: [{issuer: x, jwks: '"+text+"'}]")
	if set := p.Rules[0].JWKS; p.Attached || len(p.Problems) > 0 || set.Len() != 1 || !p.Rules[0].Source.IsZero() {
		t.Errorf("%+v", p)
	}
	if p.Equal(read(t, "{}")) || !p.Equal(read(t, "jwtRules: [{issuer: x, jwks: '"+text+"'}]")) {
		t.Error("Equal")
	}
}

// TestFaults: what cannot be meant is named, and its rule has no keys.
func TestFaults(t *testing.T) {
	for spec, want := range map[string]string{
		`[]`:                                    "spec: is not an object",
		`{jwtRule: []}`:                         "spec.jwtRule: is not known",
		`{jwtRules: {}}`:                        "jwtRules: is not a list",
		`{jwtRules: [1]}`:                       "jwtRules[0]: proto:",
		`{jwtRules: [{issuer: x, jwksURL: y}]}`: `jwtRules[0]: proto:`,
		`{jwtRules: [{}]}`:                      "jwtRules[0].issuer: is empty",
		`{jwtRules: [{issuer: x}]}`:             `jwtRules[0].jwksUri: is empty, and the issuer, which then tells where its keys are, "x" is no URL that begins with http:// or https:// and names a host`,
		`{jwtRules: [{issuer: x, jwksUri: "file:///etc/passwd"}]}`:                                                                `jwtRules[0].jwksUri: "file:///etc/passwd" is no URL`,
		`{jwtRules: [{issuer: x, jwks: "{}"}]}`:                                                                                   `jwtRules[0].jwks: has no list "keys"`,
		`{jwtRules: [{issuer: x, jwks: '{"keys":[]}'}]}`:                                                                          `jwtRules[0].jwks: has no key that can be used`,
		`{jwtRules: [{issuer: x, jwks: '{"keys":[{"kty":"oct","k":"eA"}]}'}]}`:                                                    `jwtRules[0].jwks: keys[0]: is a symmetric key`,
		`{jwtRules: [{issuer: x, jwksUri: "http://a", timeout: 0s}]}`:                                                             "jwtRules[0].timeout: must be more than 0",
		`{jwtRules: [{issuer: x, jwksUri: "http://a", audiences: [a, ""]}]}`:                                                      "jwtRules[0].audiences[1]: is empty",
		`{jwtRules: [{issuer: x, jwksUri: "http://a", fromHeaders: [{name: "a b"}]}]}`:                                            `jwtRules[0].fromHeaders[0].name: "a b" is no name of a header`,
		`{jwtRules: [{issuer: x, jwksUri: "http://a", fromHeaders: [{name: Host}]}]}`:                                             `jwtRules[0].fromHeaders[0].name: "Host" is about the message itself`,
		`{jwtRules: [{issuer: x, jwksUri: "http://a", outputPayloadToHeader: ":path"}]}`:                                          `jwtRules[0].outputPayloadToHeader: ":path" is no name of a header`,
		`{jwtRules: [{issuer: x, jwksUri: "http://a", outputClaimToHeaders: [{header: a}]}]}`:                                     `jwtRules[0].outputClaimToHeaders[0].claim: is empty`,
		`{jwtRules: [{issuer: x, jwksUri: "http://a", outputPayloadToHeader: a, outputClaimToHeaders: [{header: A, claim: b}]}]}`: `jwtRules[0].outputClaimToHeaders[0].header: "A" tells of something else already`,
		`{targetRefs: [{kind: Pod, name: x}]}`:                                                                                    `targetRefs[0]: kind "Pod" of group "": want`,
		`{selector: {}, targetRefs: [{kind: Service, name: x}]}`:                                                                  `selector: must not be there beside targetRefs`,
	} {
		p := read(t, spec)
		if len(p.Problems) == 0 || !strings.HasPrefix(p.Problems[0], want) {
			t.Errorf("%s: %q, want %s", spec, p.Problems, want)
		}
		if strings.HasPrefix(want, "jwtRules") && (p.Broken() != 1 || !p.Rules[0].Broken) {
			t.Errorf("%s: the rule counts", spec)
		}
	}
	// One key of several that cannot be used takes nothing away.
	mixed := strings.Replace(keys(t), `{"keys":[`, `{"keys":[{"kty":"oct","k":"eA"},`, 1)
	if p := read(t, "jwtRules: [{issuer: x, jwks: '"+mixed+"'}]"); len(p.Problems) != 1 || p.Broken() != 0 || p.Rules[0].JWKS.String() == jwks.Empty {
		t.Errorf("%+v", p)
	}
}
