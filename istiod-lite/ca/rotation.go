package ca

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
)

// Defaults of Times.
const (
	// DefaultDistribution is long enough for a kubelet to update a mounted config map, which takes it up to two minutes.
	DefaultDistribution = 5 * time.Minute
	// DefaultRetirement is the longest life of a certificate.
	DefaultRetirement = MaxTTL
)

// renewRootAt is the share of its life that is left when a self-signed root is replaced. It is Istio's.
const renewRootAt = 0.2

// keySchedule is where the secret of a rotation says when.
const keySchedule = "rotation.json"

// Times are how long the steps from one signing key to the next take.
type Times struct {
	// Distribution is from when verifiers are told of a new root until certificates are signed under it. Zero means 5 minutes.
	Distribution time.Duration
	// Retirement is how long after that the old root is still handed out: as long as certificates under it live. Zero means 90
	// days.
	Retirement time.Duration
}

func (t Times) withDefaults() Times {
	if t.Distribution <= 0 {
		t.Distribution = DefaultDistribution
	}
	if t.Retirement <= 0 {
		t.Retirement = DefaultRetirement
	}
	return t
}

// rotation is a way from one signer to the next that no verifier notices: first both roots are handed out and the old key
// signs, then the new key signs, and at last the old root goes.
type rotation struct {
	schedule
	previous Material // its Roots are all that were handed out
}

// schedule is when.
type schedule struct {
	// Next is the fingerprint of the signing certificate that the way leads to.
	Next       string    `json:"next"`
	ActivateAt time.Time `json:"activateAt"`
	RetireAt   time.Time `json:"retireAt"`
}

// planRotation returns the way from a signer to another, or nil if none is needed: verifiers know the next one's root, and it
// hands out the root of this one.
func planRotation(from, to *Authority, times Times, now time.Time) *rotation {
	known, kept := from.verifies(to, now), to.verifies(from, now)
	if known && kept {
		return nil
	}
	activate := now
	if !known {
		activate = now.Add(times.Distribution)
	}
	return &rotation{
		schedule: schedule{Next: to.fingerprint(), ActivateAt: activate.UTC().Truncate(time.Second), RetireAt: activate.Add(times.Retirement).UTC().Truncate(time.Second)},
		previous: from.material,
	}
}

// knew reports whether verifiers trusted another signer before the rotation began to tell them of its root.
func (r *rotation) knew(other *Authority, now time.Time) bool {
	a, err := NewAuthority(r.previous, now)
	return err == nil && a.verifies(other, now)
}

// verifies reports whether who trusts a's roots verifies what b signs.
func (a *Authority) verifies(b *Authority, now time.Time) bool {
	between := x509.NewCertPool()
	for _, text := range b.above {
		between.AppendCertsFromPEM([]byte(text))
	}
	_, err := b.cert.Verify(x509.VerifyOptions{
		Roots: a.RootPool(), Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err == nil
}

// fingerprint tells signing certificates apart.
func (a *Authority) fingerprint() string {
	sum := sha256.Sum256(a.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// same reports whether both sign alike and hand out the same roots.
func (a *Authority) same(b *Authority) bool {
	return a != nil && b != nil && a.cert.Equal(b.cert) && a.roots == b.roots && slices.Equal(a.above, b.above)
}

// inForce returns the authority at a time on the way to target, and when it changes next; zero if it does not.
func (r *rotation) inForce(target Material, now time.Time) (*Authority, time.Time, error) {
	if !now.Before(r.RetireAt) {
		a, err := NewAuthority(target, now)
		return a, time.Time{}, err
	}
	roots := unite(now, target.Roots, r.previous.Roots)
	target.Roots = roots
	if now.Before(r.ActivateAt) {
		previous := r.previous
		previous.Roots = roots
		if a, err := NewAuthority(previous, now); err == nil {
			return a, r.ActivateAt, nil
		}
		// The old one cannot sign any more, so there is nothing to wait for.
	}
	a, err := NewAuthority(target, now)
	return a, r.RetireAt, err
}

// unite joins bundles, each root once, without those that have ended.
func unite(now time.Time, bundles ...[]byte) []byte {
	var out []byte
	seen := map[string]bool{}
	for _, text := range bundles {
		certs, err := certificates(text)
		if err != nil {
			continue // NewAuthority has read it before
		}
		for _, c := range certs {
			if block := encode(c); !seen[block] && now.Before(c.NotAfter) {
				seen[block] = true
				out = append(out, block...)
			}
		}
	}
	return out
}

// secret is the rotation as replicas share it.
func (r *rotation) secret() (*corev1.Secret, error) {
	when, err := json.Marshal(r.schedule)
	if err != nil {
		return nil, fmt.Errorf("write rotation: %w", err)
	}
	s := r.previous.secret(api.CARotationSecret)
	s.Data[keySchedule] = when
	return s, nil
}

// secret is material as it is stored.
func (m Material) secret(name string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{api.LabelPartOf: api.PartOf}},
		Type:       secretType,
		Data:       map[string][]byte{keyCert: m.Cert, keyKey: m.Key, keyChain: m.Chain, keyRoots: m.Roots},
	}
}

// rotationOf reads what secret has written.
func rotationOf(s *corev1.Secret) (*rotation, error) {
	if s == nil {
		return nil, errors.New("there is no rotation")
	}
	r := &rotation{}
	if err := json.Unmarshal(s.Data[keySchedule], &r.schedule); err != nil {
		return nil, fmt.Errorf("read secret %s: %s: %w", s.Name, keySchedule, err)
	}
	if r.Next == "" || r.ActivateAt.IsZero() || r.RetireAt.Before(r.ActivateAt) {
		return nil, fmt.Errorf("read secret %s: %s: incomplete", s.Name, keySchedule)
	}
	var err error
	if r.previous, err = materialOf(s.Data); err != nil {
		return nil, fmt.Errorf("read secret %s: %w", s.Name, err)
	}
	return r, nil
}

// rootIsDue says why a self-signed root is to be replaced, or nothing.
func rootIsDue(own *corev1.Secret, a *Authority, now time.Time) string {
	if own.Annotations[api.AnnotationRotateRoot] != "" {
		return "asked for by the annotation " + api.AnnotationRotateRoot
	}
	life := a.cert.NotAfter.Sub(a.cert.NotBefore)
	if left := a.cert.NotAfter.Sub(now); left < time.Duration(renewRootAt*float64(life)) {
		return "it ends at " + a.cert.NotAfter.Format(time.RFC3339)
	}
	return ""
}

// sources are the secrets that say who signs. All but one of plugged and own may be nil. signer is what signed when it was last
// written down, and is read at the start only.
type sources struct{ plugged, own, rotation, signer *corev1.Secret }

// target is the signer that the secrets want in the end.
func (s *sources) target(now time.Time) (*Authority, error) {
	switch {
	case s.plugged != nil:
		return authorityOf(s.plugged, now)
	case s.own != nil:
		return authorityOf(s.own, now)
	}
	return nil, errors.New("load CA: there is no secret")
}

// keyCRL is where a plugged-in CA has revocation lists, as in Istio.
const keyCRL = "ca-crl.pem"

// crl returns the revocation lists of the plugged-in CA, and whether there is the key: an empty one revokes nobody any more.
func (s *sources) crl() (text []byte, there bool) {
	if s.plugged == nil {
		return nil, false
	}
	text, there = s.plugged.Data[keyCRL]
	return bytes.TrimSpace(text), there
}
