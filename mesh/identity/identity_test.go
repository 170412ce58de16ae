package identity_test

import (
	"crypto/x509"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

var (
	alice = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "alice"}
	bob   = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "bob"}
)

func TestParse(t *testing.T) {
	tests := []struct {
		uri  string
		want identity.Identity // zero: an error
	}{
		{"spiffe://cluster.local/ns/shop/sa/alice", alice},
		{"spiffe://td/ns/a/sa/B_c.d-e", identity.Identity{TrustDomain: "td", Namespace: "a", ServiceAccount: "B_c.d-e"}},
		{uri: ""},
		{uri: "spiffe://"},
		{uri: "cluster.local/ns/shop/sa/alice"},
		{uri: "SPIFFE://cluster.local/ns/shop/sa/alice"},
		{uri: "https://cluster.local/ns/shop/sa/alice"},
		{uri: "spiffe://cluster.local/ns/shop/sa"},
		{uri: "spiffe://cluster.local/ns/shop/sa/"},
		{uri: "spiffe://cluster.local/ns/shop/sa/alice/"},
		{uri: "spiffe://cluster.local/ns/shop/sa/alice/more"},
		{uri: "spiffe://cluster.local/ns//sa/alice"},
		{uri: "spiffe:///ns/shop/sa/alice"},
		{uri: "spiffe://cluster.local/sa/alice/ns/shop"},
		{uri: "spiffe://cluster.local/NS/shop/sa/alice"},
		{uri: "spiffe://cluster.local/ns/shop/SA/alice"},
		{uri: "spiffe://Cluster.local/ns/shop/sa/alice"},
		{uri: "spiffe://cluster.local:80/ns/shop/sa/alice"},
		{uri: "spiffe://user@cluster.local/ns/shop/sa/alice"},
		{uri: "spiffe://cluster.local/ns/shop/sa/alice?x=y"},
		{uri: "spiffe://cluster.local/ns/shop/sa/alice#x"},
		{uri: "spiffe://cluster.local/ns/sh%6fp/sa/alice"},
		{uri: "spiffe://cluster.local/ns/../sa/alice"},
		{uri: "spiffe://cluster.local/ns/shop/sa/ali ce"},
		{uri: "spiffe://cluster.local/ns/shop/sa/\x00"},
		{uri: "spiffe://cluster.local/ns/shop/sa/" + strings.Repeat("a", 2048)},
	}
	for _, tt := range tests {
		got, err := identity.Parse(tt.uri)
		if got != tt.want || (err == nil) != !tt.want.IsZero() {
			t.Errorf("Parse(%q) = %v, %v; want %v", tt.uri, got, err, tt.want)
		}
		if err == nil && got.String() != tt.uri {
			t.Errorf("Parse(%q).String() = %q", tt.uri, got.String())
		}
	}
}

func TestZeroIdentity(t *testing.T) {
	var none identity.Identity
	if !none.IsZero() || none.String() != "" || none.Principal() != "" || none.Validate() == nil {
		t.Errorf("zero identity: %v %q %q %v", none.IsZero(), none.String(), none.Principal(), none.Validate())
	}
}

func TestFromCertificate(t *testing.T) {
	tests := []struct {
		name string
		uris []string
		want identity.Identity
	}{
		{"one", []string{alice.String()}, alice},
		{"among others", []string{"https://example.com/", alice.String(), "spiffe://cluster.local/other"}, alice},
		{"twice the same", []string{alice.String(), alice.String()}, alice},
		{"two", []string{alice.String(), bob.String()}, identity.Identity{}},
		{"none", nil, identity.Identity{}},
		{"other path", []string{"spiffe://cluster.local/other"}, identity.Identity{}},
		{"escaped path", []string{"spiffe://cluster.local/ns/shop/sa/al%69ce"}, identity.Identity{}},
	}
	for _, tt := range tests {
		cert := &x509.Certificate{}
		for _, s := range tt.uris {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, u)
		}
		got, err := identity.FromCertificate(cert)
		if got != tt.want {
			t.Errorf("%s: got %v, %v; want %v", tt.name, got, err, tt.want)
		}
		if tt.want.IsZero() && !errors.Is(err, identity.ErrNoIdentity) {
			t.Errorf("%s: error %v, want ErrNoIdentity", tt.name, err)
		}
	}
}

// FuzzParse: whatever is accepted is written back byte for byte, and is what a certificate's URL parser makes of it.
func FuzzParse(f *testing.F) {
	f.Add(alice.String())
	f.Add("spiffe://td/ns/a/sa/b?c#d")
	f.Add("spiffe://td/ns/%61/sa/b")
	f.Add("spiffe://td/ns/a/sa/b/c/d/e/f")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := identity.Parse(uri)
		if err != nil {
			if !id.IsZero() {
				t.Fatalf("Parse(%q) failed with %v", uri, id)
			}
			return
		}
		if id.String() != uri || id.Validate() != nil {
			t.Fatalf("Parse(%q).String() = %q, %v", uri, id.String(), id.Validate())
		}
		u, err := url.Parse(uri)
		if err != nil || u.String() != uri {
			t.Fatalf("url.Parse(%q) = %v, %v", uri, u, err)
		}
	})
}
