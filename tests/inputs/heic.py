"""Tiny HEIC files, as x265 wrote them: packed, in base 85. No package that only reads HEIC can make them."""

from __future__ import annotations

import base64
import zlib

#: A picture that is red above and blue below once it is turned; a green one whose profile swaps red and blue; one whose
#: right half is clear; and two pictures, green and red, of which the second is the primary one.
HEIC = {
    "turned": """
        c-
        muNV30{GsVvAy%}izhg51nBLl8SRGck>Uf$?~5YDppk1Sn>t<P<^K3<a6VB@Af5Br_);Y>0~k0}}%yh{gCCLIc5bpcoJ^U4o0K0I@}8W?mYY
        2a**9a#F#{fNC<zk_{P<1Q|g}Tq`oc%J~X1OL7^YDjC@_3yKPW?5CLp$@xIK6sXskkr^a30jx;w1H+%cKYlPU@G~a>bx1fc@-
        Y7Y4^qGkQo#&Da=Vxu5`mJMPK=CbG7A(MS*N{PH|yC0#RUf%7#MgOK*B9aK-Fw6j0cMkb^`4XPR`FM%1h3v0E+T5umP1Yh-
        4NQq(Xh`0L2=~If)>LDL~xLAONEO|Ns906b3;00yHcH3NkA)K^mDkI5>b5XJ%1;3D7wVl9>g$usC4^`n{2fnYE=2$dSq{N=<`G@Fk}dCxc@F
        6h6YaDT$!ydaS{?p3O*>`TK@Wg%A6;vi$%5E#!adpXpJPSN&bRE$Dw>5zu}i>)L|;7dG$zibQN$cmId+19|)Stl6SUwiB#ByjRGc)_ruhUcz
        Ll^*dwJ57euCj=HD#((C<Rt=5@cn?FqO66Af7$Go{_Z*g5hM<3IgwaG_0Vv9^p<h*g<%I#3pDoT2HsGohwRBPi?+k|hlGR%Lp_2+6axucC%;
        rq*`KQ0x$Q+nySPJ<4!_58N)Ti3|0-
        SlZq+_4nf3m+0A1XoM1Q~E0Q<<^{KoA%kd87L`;xfCax`=5=Pyng!U<?{2kEV?XL0rVytB$fF3GH3yL91M(%LZFBQ#TF!V05#Ch!v""",
    "profile": """
        c-
        muNV30{GsVvAy%}izhg51nBLl8SRGck>Uf$3~+YDppk1Sn>t<P<^K3<a6VB@AdlDKjS@Y>0~k10xUu0n<ka4Fu*utelydmj>p6L`8v|R3<1d
        qb%7F#N;c;EXjo_Ve-u^C@KKbx|s#Z`9QH!pfYDhW}pzm1h68x4-
        9|){`kSbz|Wij)FI)($iw*mKS%*HNCh(p$?altNCZl1Ix#Y$$t+N4WS#bE-K=L16c-
        $5U|`^B013Aw0adfPFdi&E*a>t;N^*WqQ9)5Y(B+H~U|%@^11hhiD9GJOAtEwL0XYy7lZy)&@PcpGAYpP@mw|M^US3iF3ium9EK&rt97w+bv
        D3k9u)!ip5Vi<dO-PV4kgWk^3#3EX79e&KgzW)hBm97H8$wKF0Wfr17#OylM~EfOWMJ6d%D^CT3n7-jh=IZ4D=_>fB$pPILEX#9WX!-
        oh!1jSW^q9(RLlX2HIj1@L18HXO)p^j|Ns9NKv4jrLE;6O6`3H7%p4pXKuRLBAQzTsf$5O7k%^fV=za$K+>}I6*coduu4gk6Yd7gsc)IU#{Q
        v*i>Hq(C-qg8v@^wpHL-O$_+b2w%_a(ksBIv12iNcpT!8^}3002zPmKX""",
    "alpha": """
        c-
        muNV30{GsVvAy%}izhg51nBLl8SRGck>UfhjvTwIq=N0u(b+a*CjAhJwuG5(YG2l9`haHpIn&fr)_;#A51)&_Hk%C<X+~DR7ZYAhyWN%u56F
        K(eAhPAXU#P)$ZzvLOSCAQM86uOPD|mjSAhaaCqPQ2~%{$}C9E2a1&fl{qsq1BDnSfECGoVEFU*#}5Vue&z(A4haWF9>)LwK?;~bDwsh?ZWo
        h7B2ZG(iIEXaW`RN@>$F$vW<7hLxZpqo0|QS3NVp{lsG7}%@nG@6PM{sa$@w`&dC55yKv7-
        >HlPv)k<8+PRH$zqpjab0ClTZ@0f^fn^#A|=FMvD<qe0>YnH8Df5aZzB08)iuKe2$A^MAnn^atT5afqKl3YftvfKG>bNe$>FREYykEMn2Cc4
        g0I0`ZMN1d{-&fB0YyU<BEzo>*Gp4C0j*<yqwxq^4VCq?RRH85tOwS^=dpQ>?)8qL5jT3rjG-G{D-(#LU{lz{J|d%-
        +!g6qCv<N=<{x^8xkcfKv)64&8E75<yAoq6Xu7HX~`>!iHFf#kZeG|Nnm={lagL@}K)>q~9-
        __5V+@(Cf3`ukXIw=fuQ){9Zlx`HxJ|S6_Y(x+3AfV1?S33)w#3U)#+Kb2fM|m7O_FCG%p!ahawY?_B0Sx&A!w?3+&SitC@Vr+@vz9<{lBX{
        lPyt$+(IZ*u3fxC_Oe+w=0Al;gWYn%gRr0(J_y=l&M4y8M2g(&xTceoytXe#PE@Qp@1?K&fHTE#rFOoqOy<y0}@>?SFNAHu7ANwOj4l<m=n>
        7A%;qzQ*4-
        H1xAo<&&q~^QQwnm8!wGjwi*$g0u9D+OyyHH_rWcSd1aHdG(i@llXbLy8EqVn5Kk=pZXfT+F{uSvjgn8z03FQI>s87{PE+rn*V$FV$ZkD5Mt
        uInvnH<&$X^c(=Hji-4oo$|8$f7vWE66-=t1;nfzfd0084*Ae8""",
    "second_is_primary": """
        c-
        muNV30{GsVvAy%}izhg51nBLl8SRGck>UfpK+iYDppk1Sn>t<P<^K3<a6VB@Af5Br_);Y>0~k0}}%yh{bpwLIZ(0Pz(r|*pNgR7%Va~^U}aP
        kgO<>lL}S_RFhGbY{-Bj$b=B&E66O#h3R8t$t)-
        ;0J86779{5b=~AFFXGUg_&;+m|xep9~{{HyEz`)O(05n^|fsu#t|9_AIW{?VI5R%))<d6uI)O2EGM3Y&d(8xON)w)^F9w;t2(7?dJ(*P1~Nd
        l^7b74GKe6SN}hj4O!PElTRP6beumw^qagh3>;xF8kkTL&oCNX|(FIZOcJO9=h{|NjdhzrbjactK`GCP*VQ2L}g`QphaGg+&E0bXgmjm|0sG
        n4mNRLs@Q0A}C6XH5k{k8Hu%<bSgaEA0hnz|C`eK|G)o6ZH`u7C-
        ^J*_>=7uCeHg3Uo8>z)TTt?%behyXB$wpeb~R1<^TV0A^%hVOvkGY080Rf^#""",
}


def heic(name: str) -> bytes:
    """The bytes of one of the files."""
    return zlib.decompress(base64.b85decode("".join(HEIC[name].split())))
