package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/ambit-mesh/ambit/api"
)

// secretType marks the secret of a self-signed root, as Istio does.
const secretType = "istio.io/ca-root"

// Keys of the secrets. cacerts may also be a TLS secret such as cert-manager writes.
const (
	keyCert     = "ca-cert.pem"
	keyKey      = "ca-key.pem"
	keyChain    = "cert-chain.pem"
	keyRoots    = "root-cert.pem"
	keyTLSCert  = corev1.TLSCertKey
	keyTLSKey   = corev1.TLSPrivateKeyKey
	keyTLSRoots = "ca.crt"
)

// gather reads the secrets of a namespace. Where the user has plugged nothing in and there is no self-signed root, one is made;
// of several replicas that make one at once, the first to store it wins, and all use that.
func gather(ctx context.Context, secrets typedcorev1.SecretInterface, organization string, now time.Time) (*sources, error) {
	s := &sources{}
	for name, to := range map[string]**corev1.Secret{
		api.PluggedCASecret: &s.plugged, api.CASecret: &s.own, api.CARotationSecret: &s.rotation, api.CASignerSecret: &s.signer,
	} {
		secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			*to = secret
		case name == api.CASignerSecret && apierrors.IsForbidden(err):
			// The roles are of a release that did not know it: as if it were not there.
		case !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("load CA: %w", err)
		}
	}
	if s.plugged == nil && s.own == nil {
		own, err := store(ctx, secrets, organization, now)
		if err != nil {
			return nil, fmt.Errorf("load CA: %w", err)
		}
		s.own = own
	}
	return s, nil
}

func store(ctx context.Context, secrets typedcorev1.SecretInterface, organization string, now time.Time) (*corev1.Secret, error) {
	m, err := SelfSigned(organization, now)
	if err != nil {
		return nil, err
	}
	made, err := secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: api.CASecret, Labels: map[string]string{api.LabelPartOf: api.PartOf}},
		Type:       secretType,
		Data:       map[string][]byte{keyCert: m.Cert, keyKey: m.Key, keyRoots: m.Roots},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return secrets.Get(ctx, api.CASecret, metav1.GetOptions{})
	}
	return made, err
}

func authorityOf(s *corev1.Secret, now time.Time) (*Authority, error) {
	m, err := materialOf(s.Data)
	var a *Authority
	if err == nil {
		a, err = NewAuthority(m, now)
	}
	if err != nil {
		return nil, fmt.Errorf("load CA from secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return a, nil
}

func materialOf(data map[string][]byte) (Material, error) {
	m := Material{Cert: data[keyCert], Key: data[keyKey], Chain: data[keyChain], Roots: data[keyRoots]}
	if len(m.Cert) == 0 && len(data[keyTLSCert]) > 0 {
		m = Material{Cert: data[keyTLSCert], Key: data[keyTLSKey], Chain: data[keyTLSCert], Roots: data[keyTLSRoots]}
	}
	if len(m.Cert) == 0 || len(m.Key) == 0 {
		return m, errors.New(keyCert + " and " + keyKey + " (or " + keyTLSCert + " and " + keyTLSKey + ") must both be there")
	}
	if len(bytes.TrimSpace(m.Roots)) == 0 {
		// A self-signed certificate is its own root; NewAuthority says if this one is not.
		m.Roots = m.Cert
	}
	return m, nil
}
